"""Streams through an MLP as the core is told of them (csrc/jets.h), but for tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ..math.table import Formula
from ..partials.plan import Streams, second
from ..partials.programs import Layer, layers_of
from . import core


def jets_of(streams: Streams, layers: Sequence[Layer], widths: tuple[int, ...], activations: tuple[Formula, ...],
    dtype: str,
):  # fmt: skip
    """Streams and what is done with them at each layer, as the core is told of them but for tensors."""
    rows = []
    for l, (layer, activation) in enumerate(zip(layers, activations, strict=True)):
        programs = [None if program is None else tuple(program) for program in layer[3:]]
        counts = tuple(map(len, layer[:3]))
        rows.append(
            (*widths[l : l + 2], core.formula("Activation", activation), *counts, layer.given[0] == 0, *programs)
        )
    top = {k: n for n, k in enumerate(layers[-1].made)}
    results = [[(top[k], o, c) for k, o, c in row if k in top] for row in streams.outputs]
    return core._C.Jets(core.CODES["Dtype"][dtype], widths[0], len(streams.first), rows, results)


@lru_cache(maxsize=256)
def jets_of_second(
    widths: tuple[int, ...], activations: tuple[Formula, ...], dtype: str, directions: int, summed: bool
):  # fmt: skip
    """Those of values, first and second derivatives along directions, so many of them side by side; or of values, and
    of second derivatives `summed` over directions."""
    streams = second(directions, widths[-1], summed)
    return jets_of(streams, layers_of(streams, activations), widths, activations, dtype)
