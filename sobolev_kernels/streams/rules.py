"""The whole table of rules of pairs."""

from . import matrices, norms, pointwise, products, recurrent, shapes  # noqa: I001
from . import half  # after those that it makes others of
from .pair import RULES, TWICE, in_place

__all__ = ["RULES", "TWICE", "half", "matrices", "norms", "pointwise", "products", "recurrent", "shapes"]

for table in (RULES, TWICE):
    in_place(table)
