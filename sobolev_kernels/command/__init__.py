"""The command `sobolev-kernels`, or `python -m sobolev_kernels`: what is here, whether it is right, what it does."""

from __future__ import annotations

import sys

WANTED = ("typer", "rich")


def main() -> int:
    """The command line, where what it is made of is installed; else how to install it."""
    try:
        from .line import app
    except ModuleNotFoundError as missing:
        if missing.name not in WANTED:
            raise
        print(
            f"the command needs {missing.name}, which is not installed: pip install 'sobolev_kernels[cli]'",
            file=sys.stderr,
        )
        return 1
    return app()
