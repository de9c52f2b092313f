"""The benchmark: `python -m bench` checks every way to compute a Sobolev step, then times them side by side."""
