"""The whole table of rules of pairs."""

from . import matrices, norms, pointwise, products, recurrent, shapes
from .pair import RULES

__all__ = ["RULES", "matrices", "norms", "pointwise", "products", "recurrent", "shapes"]
