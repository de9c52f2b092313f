"""The whole table of rules of pairs."""

from . import norms, pointwise, products, shapes
from .pair import RULES

__all__ = ["RULES", "norms", "pointwise", "products", "shapes"]
