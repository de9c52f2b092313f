"""A convolution of images and its way back, by the core where they are small (csrc/convolved.h): a call of PyTorch's
costs as much as some ten thousand numbers, and of few channels it fills no register."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from ..backends import core

# Numbers of a sample, coming or going, and of a kernel, up to which the core is faster. µs of what it gives, of the
# adjoint of its inputs and of that of its weight, PyTorch's and these, one thread of an EPYC with AVX2, 128 samples; by
# channels:
#
#     1→6 3×3 8×8    265 416 410   28 47 43         6→16 3×3 4×4   157 219 239   20 17 38
#     8→8 3×3 8×8    543 432 434  146 144 218       8→16 in steps  289 1075 322  88 90 135
#     16→8 3×3 8×8   962 520 612  279 237 426      32→32 3×3 8×8  2288 1841 2908  1572 1598 3200
MOST, MOST_OF_KERNEL = 1 << 12, 1 << 13
# Numbers of all samples, coming or going, up to which PyTorch's of a value and its tangents together is faster.
FEW = 1 << 18
# Channels of the adjoint up to which PyTorch's way back to the inputs is faster as a convolution.
TURNED = 15

aten_back = torch.ops.aten.convolution_backward.default


class Told(NamedTuple):
    """The core's own words for a convolution, and what it gives of a sample."""

    of_core: object
    sizes: tuple[int, ...]
    transposed: bool

    def run(
        self, x: torch.Tensor | None, y: torch.Tensor | None, weight: torch.Tensor, *, bias: torch.Tensor | None = None,
        to_y: torch.Tensor | None = None, to_x: torch.Tensor | None = None, dweight: torch.Tensor | None = None,
        dbias: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        """Fill what is wanted of it: what x gives, the adjoint of x from that of y, those of weight and bias."""
        of, to = ((y, x), (to_x, to_y)) if self.transposed else ((x, y), (to_y, to_x))
        core._C.convolved(self.of_core, len(x if y is None else y), [*of, weight, bias, *to, dweight, dbias])


@lru_cache(maxsize=256)
def told(
    sizes: Sequence[int], kernel: Sequence[int], of: tuple[Sequence[int], ...], threads: int, isa: str
) -> Told | None:  # fmt: skip
    """Of samples and a kernel without gaps on the CPU; None where PyTorch's is as fast."""
    stride, padding, dilation, transposed, more, groups = of
    dims = [*zip(sizes[1:], kernel[2:], stride, padding, dilation, more, strict=True)]
    if any([p < 0 or not 0 <= m < max(s, d) for _, _, s, p, d, m in dims]):  # which PyTorch refuses
        return None
    if groups > 1 or len(dims) > 2 or sizes[0] != kernel[0 if transposed else 1]:
        return None
    if transposed:
        made = [(n - 1) * s - 2 * p + d * (k - 1) + m + 1 for n, k, s, p, d, m in dims]
    else:
        made = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d, _ in dims]
    given = kernel[1 if transposed else 0], *made
    if min(made) < 1 or max(math.prod(sizes), math.prod(given)) > MOST or math.prod(kernel) > MOST_OF_KERNEL:
        return None
    inputs, outputs = (made, sizes[1:]) if transposed else (sizes[1:], made)
    each = [[n, k, y, s, p, d] for n, y, (_, k, s, p, d, _) in zip(inputs, outputs, dims, strict=True)]
    each = [[1, 1, 1, 1, 0, 1], *each][-2:]
    return Told(core._C.Convolved(kernel[1], kernel[0], each, transposed, threads, isa), given, transposed)


class Convolution(NamedTuple):
    """Of `of`, the arguments of `aten.convolution` after the bias; by the core, if it was told of it."""

    of: tuple
    told: Told | None

    @classmethod
    def of_tensors(cls, x: torch.Tensor, weight: torch.Tensor, of: tuple) -> Convolution:
        if x.dtype is not torch.float32:
            return cls(of, None)
        return cls(of, told(x.shape[1:], weight.shape, of, torch.get_num_threads(), core.instruction_set()))

    def made(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.told is None:
            return torch.convolution(x, weight, bias, *self.of)
        y = x.new_empty((len(x), *self.told.sizes))
        self.told.run(x, None, weight, bias=bias, to_y=y)
        return y

    def back(
        self, bar: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, asked: Sequence[bool]
    ) -> tuple[torch.Tensor | None, ...]:  # fmt: skip
        """The adjoints of x, weight and bias from that of what is made of x; None of what is not asked for."""
        if self.told is None:
            return self.back_by_torch(bar, x, weight, asked)
        dx, dweight = torch.empty_like(x) if asked[0] else None, torch.empty_like(weight) if asked[1] else None
        dbias = bar.new_empty(bar.shape[1]) if asked[2] else None
        self.told.run(x if asked[1] else None, bar.contiguous(), weight, to_x=dx, dweight=dweight, dbias=dbias)
        return dx, dweight, dbias

    def back_by_torch(
        self, bar: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, asked: Sequence[bool]
    ) -> tuple[torch.Tensor | None, ...]:  # fmt: skip
        """The same by operations that autograd knows."""
        turned = turned_around(weight, self.of) if asked[0] else None
        if turned is None:
            return aten_back(bar, x, weight, bar.shape[1:2], *self.of, asked)
        dx = torch.convolution(bar, weight.transpose(0, 1).flip(*range(2, weight.dim())), None, *turned)
        if not any(asked[1:]):
            return dx, None, None
        return dx, *aten_back(bar, x, weight, bar.shape[1:2], *self.of, (False, *asked[1:]))[1:]

    def both(
        self, c: torch.Tensor, bar: torch.Tensor, weight: torch.Tensor, asked: Sequence[bool]
    ) -> tuple[torch.Tensor | None, ...]:  # fmt: skip
        """What comes back to an adjoint bar of what is made, and to the weight, from c, that of the inputs' adjoint."""
        c = c.contiguous()
        if self.told is None:
            dweight = aten_back(bar, c, weight, None, *self.of, OF_WEIGHT)[1] if asked[1] else None
            return self.made(c, weight, None) if asked[0] else None, dweight
        dbar = c.new_empty(bar.shape) if asked[0] else None
        dweight = torch.empty_like(weight) if asked[1] else None
        self.told.run(c, bar.contiguous() if asked[1] else None, weight, to_y=dbar, dweight=dweight)
        return dbar, dweight


def is_bias(bias: torch.Tensor | None, weight: torch.Tensor, of: tuple) -> bool:
    """Whether it has a number for each channel that is made; PyTorch refuses others."""
    transposed, _, groups = of[3:]
    return bias is None or bias.shape == (weight.shape[1] * groups if transposed else len(weight),)


OF_INPUT, OF_WEIGHT = (True, False, False), (False, True, False)


def turned_around(weight: torch.Tensor, of: tuple) -> tuple | None:
    """The arguments after the bias of the convolution that the adjoint of the inputs is; None where there is none, or
    PyTorch's own backward is as fast."""
    stride, padding, dilation, transposed, _, groups = of
    if groups > 1 or transposed or weight.shape[0] > TURNED or any([s > 1 for s in stride]):
        return None
    around = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)]
    return None if min(around) < 0 else (stride, around, dilation, False, [0] * len(around), 1)


def arguments_of(
    dims: int, transposed: bool, stride=1, padding=0, *others, output_padding=0, groups=1, dilation=1
) -> tuple | None:  # fmt: skip
    """Those of `aten.convolution` after the bias; None of a padding in words."""
    told = {"output_padding": output_padding, "groups": groups, "dilation": dilation}
    names = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    told |= dict(zip(names, others, strict=False))
    if isinstance(padding, str) or (not transposed and told["output_padding"] != 0):
        return None
    each = lambda of: (of,) * dims if isinstance(of, int) else (*of,) * (dims // len(of))  # noqa: E731
    spread = map(each, (stride, padding, told["dilation"]))
    return *spread, transposed, each(told["output_padding"]), told["groups"]
