"""Every way to compute a Sobolev step in PyTorch, checked against float64, then timed side by side."""
