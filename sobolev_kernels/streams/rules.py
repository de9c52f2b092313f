"""The whole table of rules of pairs."""

from . import matrices, norms, pointwise, products, recurrent, shapes
from .pair import RULES, TWICE

__all__ = ["RULES", "TWICE", "matrices", "norms", "pointwise", "products", "recurrent", "shapes"]
