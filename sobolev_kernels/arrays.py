"""NumPy's arrays, and what it can make one of, as tensors."""

from __future__ import annotations

import numpy
import torch

from .errors import need


def tensor_of(name: str, array: object) -> torch.Tensor:
    """A tensor in the memory of an array, or of a copy where PyTorch could not read that.

    Whole numbers are int64 in `values`, where they are classes, and floating elsewhere.

    Raises:
        TypeError: it is not of numbers.
    """
    expected = "an array of numbers"
    try:
        array = numpy.asarray(array)
    except Exception:
        need(False, name, expected, array, TypeError)
    if array.dtype.kind in "iu":
        array = array.astype(numpy.int64 if name == "values" else numpy.float64)
    elif array.dtype.kind not in "fcb":  # as those of bfloat16, which are none of NumPy's own
        try:
            array = array.astype(numpy.float32)
        except Exception:
            need(False, name, expected, array, TypeError)
    if array.dtype == numpy.longdouble and numpy.dtype(numpy.longdouble).itemsize > 8:
        array = array.astype(numpy.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(step < 0 or step % array.itemsize for step in array.strides):
        array = array.copy()
    return torch.from_numpy(array)
