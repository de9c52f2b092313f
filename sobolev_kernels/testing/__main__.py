"""`python -m sobolev_kernels.testing`: `sobolev-kernels verify` where there is nothing but torch."""

import sys

from .verify import FAILED, RIGHT, WRONG, verify


def main() -> int:
    bad = 0
    for row in verify():
        bad += row.outcome in (WRONG, FAILED)
        said = row.as_dict()
        place = " ".join(str(said[name]) for name in ("backend", "where", "dtype", "precision"))
        error = "" if row.error is None else f" ({row.error:.3f} of what is allowed)"
        why = "" if row.outcome == RIGHT else f": {row.note}"
        print(f"{place}: {row.check}: {row.outcome}{error}{why}", flush=True)
    print(f"{bad} NOT RIGHT" if bad else "all that can run here is right")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
