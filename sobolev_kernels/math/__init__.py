"""The tables of formulas: activations, losses, distributions of directions. Each formula stands here once."""
