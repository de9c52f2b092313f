"""Texts that were printed."""

from __future__ import annotations

from collections.abc import Iterable


class Printed(str):
    """What has been printed already, so that a notebook does not show it again as the value of a cell."""

    def _ipython_display_(self) -> None:
        pass


def printed(lines: Iterable[str]) -> Printed:
    text = Printed("\n".join(lines))
    print(text)
    return text
