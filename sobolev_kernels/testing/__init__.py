"""What tells right from wrong: the one rule, random problems, and any backend beside the float64 reference."""

from .rule import allowed, assert_within_rule, error, multiplies_in, perturbed

__all__ = ["allowed", "assert_within_rule", "error", "multiplies_in", "perturbed"]
