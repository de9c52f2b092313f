"""Policies of Atari games, distilled."""

import examples.lab  # noqa: F401  It says what is missing, before anything here needs it
