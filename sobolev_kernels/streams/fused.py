"""A chain of layers amid a forward as one fused call, whose inputs are a value and its tangents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise

import torch

from .. import ops
from ..backends import core, cpu, on_device_of
from ..dispatch import free
from ..enums import COTANGENTS
from ..math.activations import is_curved
from ..math.table import Formula
from ..modules import IDENTITY
from ..problem import DERIVATIVES, Operands, Problem
from ..steps import surroundings
from .again import Known, learn, numbers_again
from .by_heart import Heard
from .chain import Layer
from .passes import Passes, Values, passes_of
from .segments import Numbers, Segments
from .values import ValueSegments

# A chain is fused where it has at most so many multiplies for each number that an activation is applied to, by whether
# it has several linear layers and whether a slope of its activations is taken by autograd; and no layer wider than so.
# Operation after operation ÷ fused, with the way back, float32 on two threads of a Xeon with AVX-512, the least and the
# most of N = 8, 128, 1024 and P = 1, 4:
#
#     64→128→64       relu 1.17 to 1.47, gelu 1.66 to 2.04        16→128, 64→64   relu 1.00 to 1.44, gelu 1.55 to 2.78
#     128→512→128     relu 1.05 to 1.25, gelu 1.06 to 1.63        128→128         relu 0.94 to 1.22, gelu 1.13 to 1.73
#     256→256→256     relu 0.92 to 1.16, gelu 1.09 to 1.59        256→256         relu 0.85 to 1.09, gelu 1.02 to 1.46
#     512→512→512     relu 0.66 to 0.94, gelu 0.81 to 1.04        256→1024→256    gelu 0.68 to 1.15
#
# and 0.82 to 0.98 of one linear layer alone. With one thread as much, but 64→64 relu 0.89 to 1.29. Of second
# derivatives, by two calls, on one thread, N = 8, 128, 1024 and P = 1, 4:
#
#     64→128→64       tanh 1.09 to 1.61, gelu 1.30 to 1.76        128→128         tanh 1.04 to 1.27
#     128→512→128     tanh 0.99 to 1.90                           256→256         gelu 1.12 to 1.39
#     256→256→256     tanh 0.91 to 1.64, gelu 1.03 to 1.34        512→512→512     gelu 0.94 to 1.65
#
# and 0.92 to 1.08 where a sum over the directions alone is asked for, of which the calls carry twice the streams.
MULTIPLIES = {(False, False): 32, (False, True): 256, (True, False): 256, (True, True): 512}
WIDEST, CHEAP = 512, {"relu", "tanh", "sigmoid", "sin"}
# In float64 the core has these from the C library, lane by lane; of more samples than so, 64→128→64, P = 1, N = 1024:
# tanh 0.67, sin 0.61, elu 0.79, gelu 0.92, and 1.2 to 2.3 of the others; tanh with N = 64 1.18.
BY_LANES, FEW = {"tanh", "sin", "elu", "gelu"}, 64

# On the gradients' side a chain is four passes, of values, of a gradient, of its adjoint and of theirs. What they save
# is counted in multiplies, with so many for each number that an activation is applied to, and more where PyTorch has no
# double backward of its own in few steps; their Python costs as much as PASSES of them, and each function of PyTorch's
# that a run meets FUNCTION. Double backward ÷ passes, one thread of the same machine, one gradient and four:
#
#                        N = 128                                   N = 1024
#     16→128             gelu 1.33 1.50, relu 0.78 0.77            gelu 1.80 3.45, relu 1.36
#     64→128→64          gelu 1.70 1.81, relu 1.33 1.36            gelu 2.14 2.68, relu 1.99 2.00
#     128→128→128→128    gelu 2.00 2.16, relu 1.71 1.75            gelu 2.11 2.08, relu 2.18 2.01
#     128→512→128        gelu 2.21, relu 2.02 2.02                 gelu 2.68, relu 1.65 1.84
#
# before the Python of putting them off, and with all in the cache that others have between them. Within students, where
# chains are known by heart, a step without ÷ with them, one thread, N = 128, one gradient: Fourier features (softplus)
# 1.17, a residual MLP (gelu, three chains) 1.14, a transformer 1.03, and 0.93 of a gated product, 128→128→1 tanh; two
# threads, three of 64→128→64 gelu, N = 1024, 1.2 to 1.4.
ACTIVATED, DEAR, PASSES, FUNCTION = 16, 4, 2.3e6, 7e4


def segments_of(
    ends: tuple[int, ...] | None, careful: bool = False, known: dict[int, Known] | None = None
) -> Segments | None:  # fmt: skip
    """How the chains of a run are put off, and where they end; not at all, if None. `known`: of runs like it."""
    return None if ends is None else Segments(fuse, frozenset(ends), careful, WIDEST, known)


def fuse(
    layers: list[Layer], v: torch.Tensor, d: torch.Tensor, known: dict[int, Known] | None = None, place: int = -1,
    P: int | None = None,
) -> tuple[str, Numbers] | None:  # fmt: skip
    """What layers make of a value [..., n] and its tangents [P, ..., n], and the backend that did it; or None. `P`: of
    order 2 how many of the derivatives are first ones."""
    n, flat = v.shape[-1], v.dim() == 2
    x, given = (v, d) if flat else (v.reshape(-1, n), d.reshape(len(d), -1, n))
    parameters = [tensor for weight, bias, *_ in layers for tensor in (weight, bias) if tensor is not None]
    if P is not None:
        problem = problem_at(layers, v, d[:P], 2)
        return None if problem is None else (problem.backend, twice(problem, v, Operands(x, parameters, given)))
    found = None if known is None else known.get(place)
    numbers = None if found is None else numbers_again(found, layers, x, parameters, given)
    if numbers is None:
        problem = problem_at(layers, v, d)
        if problem is None:
            return None
        operands = Operands(x, parameters, given)
        if ops.tracing(operands):
            numbers = ops.mlp_sobolev(problem, operands)
        else:
            numbers = ops.apply(ops.compute, problem, operands, *ops.inputs_of(problem, operands))
            if known is not None:
                if found is None or found.problem != problem or not found.is_usual():
                    found = known[place] = Known(problem, surroundings())
                learn(found.steps, problem, operands)
    y, tangents = numbers
    if not flat:
        y, tangents = y.view(*v.shape[:-1], y.shape[-1]), tangents.view(*d.shape[:-1], y.shape[-1])
    return (problem if found is None else found.problem).backend, (y, tangents)


def values_put_off(
    ends: tuple[int, ...] = (), begun: frozenset[int] | None = None, careful: bool = False,
    singles: frozenset[int] | None = None,
) -> ValueSegments:  # fmt: skip
    """How the chains of a run of values alone are put off, and where they end: those that begin where it is said, of a
    first run those that it pays for; and which operations are our own."""
    told = {"begun": begun, "by_heart": numbers_by_heart, "singles": singles}
    segments = ValueSegments(fuse_values, frozenset(ends), careful, WIDEST, **told)
    if begun is None:
        segments.fuse = partial(fuse_paying, segments)
    return segments


def fuse_paying(segments: ValueSegments, layers: list[Layer], v: torch.Tensor, *rest) -> tuple[str, Numbers] | None:
    """The same where that takes less time than PyTorch's operations; how much less is noted."""
    saving = saving_of(layers, v)
    found = fuse_values(layers, v, *rest) if saving > 0 else None
    segments.saving += saving if found is not None else 0
    return found


def fuse_values(
    layers: list[Layer], v: torch.Tensor, known: None = None, place: int = -1, P: int | None = None
) -> tuple[str, Numbers] | None:  # fmt: skip
    """What layers make of a value [..., n], whose gradient is one operation, too; or None, where the core does not."""
    parameters = [tensor for weight, bias, *_ in layers for tensor in (weight, bias) if tensor is not None]
    widths, activations = (v.shape[-1], *[layer.weight.shape[0] for layer in layers]), tuple(a for _, _, a, _ in layers)
    biases = tuple(layer.bias is not None for layer in layers)
    passes = passes_for(widths, activations, biases, v, parameters)
    return None if passes is None else ("cpu", (apply(passes, v, *parameters)[0],))


def numbers_by_heart(heard: Heard, v: torch.Tensor, parameters: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The same of a chain that is known."""
    own = heard.parameters(parameters)
    key = v.shape, v.dtype, tuple([(*p.stride(), p.is_neg()) for p in own]), surroundings()
    if key not in heard.passes:
        heard.passes[key] = passes_for(heard.widths, heard.activations, heard.biases, v, own)
    passes = heard.passes[key]
    return None if passes is None else apply(passes, v, *own)[0]


def passes_for(
    widths: tuple[int, ...], activations: tuple[Formula, ...], biases: tuple[bool, ...], v: torch.Tensor,
    parameters: Sequence[torch.Tensor],
) -> Passes | None:  # fmt: skip
    """What the core is told of layers of a value [..., n]; None, where it does not compute them."""
    if not v.numel() or any([tensor.is_neg() for tensor in parameters]):
        return None
    strides, around = tuple([p.stride() for p in parameters]), (torch.get_num_threads(), core.instruction_set())
    return passes_of_shape(widths, activations, biases, v.dtype, v.numel() // widths[0], strides, *around)


@lru_cache(maxsize=1024)
def passes_of_shape(
    widths: tuple[int, ...], activations: tuple[Formula, ...], biases: tuple[bool, ...], dtype: torch.dtype, N: int,
    strides: tuple[tuple[int, ...], ...], threads: int, isa: str,
) -> Passes | None:  # fmt: skip
    if any(len(stride) == 1 and stride[0] != 1 for stride in strides):
        return None
    kinds = str(dtype).removeprefix("torch."), "cpu"
    problem = Problem(DERIVATIVES, widths, biases, activations, *kinds, input_gradient=True)
    if cpu.supports(problem) is not None:
        return None
    of_gradient = replace(problem, projection=COTANGENTS, P=1)
    of_weights = tuple(stride for stride in strides if len(stride) == 2)
    return passes_of(problem, N, of_weights, cpu.plan(of_gradient, N))


def saving_of(layers: list[Layer], v: torch.Tensor) -> float:
    """What fused passes save, in multiplies of a thread; not of a chain without an activation, or one too wide."""
    widths, activated = (v.shape[-1], *[layer.weight.shape[0] for layer in layers]), 0
    for layer, n in zip(layers, widths[1:], strict=True):
        if layer.activation != IDENTITY:
            activated += n * (DEAR if layer.activation.name not in CHEAP else 1)
    N = v.numel() // max(1, widths[0])
    lanes = N > FEW and v.dtype is torch.float64 and any(layer.activation.name in BY_LANES for layer in layers)
    if max(widths) > WIDEST or not activated or lanes:
        return 0.0
    multiplies = sum(a * b for a, b in pairwise(widths)) + ACTIVATED * activated
    return N * multiplies / torch.get_num_threads() - PASSES


def twice(problem: Problem, v: torch.Tensor, operands: Operands) -> Numbers:
    """Of second derivatives, which follow the P first ones unless they are 0, D²m[ḣ, ḣ] + Dm[ḧ] by a call for each."""
    first, *second = operands.given.split(problem.P)
    y, tangents, bent = ops.mlp_sobolev(problem, operands._replace(given=first))
    if second:
        bent = bent + ops.mlp_sobolev(replace(problem, order=1), operands._replace(given=second[0]))[1]
    d = torch.cat([tangents, bent])
    return y.view(*v.shape[:-1], y.shape[-1]), d.view(len(d), *v.shape[:-1], y.shape[-1])


def problem_at(layers: list[Layer], v: torch.Tensor, d: torch.Tensor, order: int = 1) -> Problem | None:
    """The problem of these layers; None where they are not fused."""
    widths, activations, biases = [v.shape[-1]], [], []
    for weight, bias, activation, _ in layers:
        widths.append(weight.shape[0])
        activations.append(activation)
        biases.append(bias is not None)
    shape = tuple(widths), tuple(activations), tuple(biases)
    many = v.numel() > FEW * widths[0]
    asked = order, len(d), v.requires_grad, d.requires_grad, many, core.MISSING
    return problem_of(*shape, v.dtype, v.device, *asked) if v.numel() else None


@lru_cache(maxsize=1024)
def problem_of(
    widths: tuple[int, ...], activations: tuple[Formula, ...], biases: tuple[bool, ...], dtype: torch.dtype,
    device: torch.device, order: int, P: int, of_input: bool, of_given: bool, many: bool, missing: str | None,
) -> Problem | None:  # fmt: skip
    """The problem on the backend of a free choice; None where that would cost more than it saves."""
    lanes = many and dtype is torch.float64 and any(a.name in BY_LANES for a in activations)
    if (
        lanes
        or not pays(widths, activations)
        or (order == 2 and not all(a == IDENTITY or is_curved(a) for a in activations))
    ):
        return None
    asked = {"order": order, "P": P, "input_gradient": of_input, "given_gradient": of_given}
    kinds = str(dtype).removeprefix("torch."), device.type
    problem = Problem(DERIVATIVES, widths, biases, activations, *kinds, **asked)
    with on_device_of(torch.empty(0, device=device)):
        backend = free(problem)
    # on an H100 the host's part of a step alone took 0.36 to 0.48 ms, as long as some 50 operations of PyTorch
    return replace(problem, backend=backend) if backend == "cpu" else None


def pays(widths: tuple[int, ...], activations: tuple[Formula, ...]) -> bool:
    multiplies = sum(a * b for a, b in pairwise(widths))
    activated = [(n, a) for n, a in zip(widths[1:], activations, strict=True) if a != IDENTITY]
    dear = any(a.name not in CHEAP for _, a in activated)
    most = MULTIPLIES[len(widths) > 2, dear] * sum(n for n, _ in activated)
    return max(widths) <= WIDEST and 0 < multiplies <= most


apply = super(torch.autograd.Function, Values).apply  # without what torch.func would be told of it
