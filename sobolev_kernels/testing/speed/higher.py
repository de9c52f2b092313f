"""Order 2 and Laplacians without this library: baselines as those of baselines.py.

jet-for-pytorch (github.com/f-dangel/torch-jet: Taylor mode, also collapsed) takes part where it is installed, which
takes Python 3.12.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.func import grad, jacfwd, jacrev, jvp, vmap
from torch.nn.functional import linear

from .baselines import Build, Layers, Step, Variant, basis, by_autograd, compiled, forward, layers_of, sobolev
from .cases import LAPLACIAN, SECOND, Case, Data

JET = "jet-for-pytorch"


def mean_square(y: torch.Tensor, laplacian: torch.Tensor) -> torch.Tensor:
    """The loss of a Laplacian, as of the residual of an equation."""
    return (y + laplacian).square().mean()


def nested_jvp(layers: Layers, data: Data) -> torch.Tensor:
    def along(v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first = lambda x: jvp(lambda x: forward(layers, x), (x,), (v,))  # noqa: E731
        (y, tangent), (_, second) = jvp(first, (data.x,), (v,))
        return y, tangent, second

    return sobolev(data, *vmap(along, out_dims=(None, 0, 0))(data.directions))


def taylor(layers: Layers, x: torch.Tensor, v: torch.Tensor, collapsed: bool = False) -> tuple[torch.Tensor, ...]:
    """Values, tangents along v [P, N or 1, D] and second derivatives (or only their sum [1, N, O]).

    Above the first layer, where there are no second derivatives, the streams are rows of one product.
    """
    P, y, tangents, seconds = len(v), x, v, None
    for weight, bias, _, jet in layers:
        if seconds is None:
            y, tangents = linear(y, weight, bias), linear(tangents, weight)
        else:
            z = linear(torch.cat((y[None], tangents, seconds)), weight)
            y, tangents, seconds = z[0] + bias, z[1 : 1 + P], z[1 + P :]
        if jet:
            y, slope, curvature = jet(y)
            squares = tangents.square()
            bent = curvature() * (squares.sum(0, keepdim=True) if collapsed else squares)
            seconds = bent if seconds is None else slope * seconds + bent
            tangents = slope * tangents
    return y, tangents, seconds


def streams(layers: Layers, data: Data) -> torch.Tensor:
    return sobolev(data, *taylor(layers, data.x, data.directions))


def collapsed_streams(layers: Layers, data: Data) -> torch.Tensor:
    y, _, total = taylor(layers, data.x, basis(data), collapsed=True)
    return mean_square(y, total[0])


def trace_of_hessian(layers: Layers, data: Data) -> torch.Tensor:
    hessian = vmap(jacfwd(jacrev(lambda x: forward(layers, x))))(data.x)  # [N, O, D, D]
    return mean_square(forward(layers, data.x), hessian.diagonal(dim1=-2, dim2=-1).sum(-1))


def forward_over_reverse(layers: Layers, data: Data) -> torch.Tensor:
    """The tangents of a scalar student's gradient along the basis, of each its own entry."""

    def total(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = forward(layers, x)
        return y.sum(), y

    def along(e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, row, y = jvp(grad(total, has_aux=True), (data.x,), (e.expand_as(data.x),), has_aux=True)
        return y, (row * e).sum(-1, keepdim=True)

    y, entries = vmap(along, out_dims=(None, 0))(basis(data))
    return mean_square(y, entries.sum(0))


def jets(layers: Layers, data: Data, jet: Callable) -> torch.Tensor:
    along = lambda v: jet((data.x, v, torch.zeros_like(v)))  # noqa: E731
    return sobolev(data, *vmap(along, out_dims=(None, 0, 0))(data.directions))


def collapsed_jets(layers: Layers, data: Data, jet: Callable) -> torch.Tensor:
    v = basis(data).expand(-1, *data.x.shape)
    y, _, total = jet((data.x, v, torch.zeros_like(data.x)))
    return mean_square(y, total)


def by_jet(loss: Callable[[Layers, Data, Callable], torch.Tensor], **how: bool) -> Build:
    """A loss that is given the Taylor mode of the student."""

    def build(case: Case, student: torch.nn.Module, data: Data) -> Step:
        import jet

        layers = layers_of(student)
        of_student = jet.jet(lambda x: forward(layers, x), (data.x,), **how)
        return by_autograd(lambda layers, data: loss(layers, data, of_student))(case, student, data)

    return build


NESTED, STREAMS = "nested jvp", "Taylor streams"
TRACE, COLLAPSED = "trace of Hessian", "collapsed Taylor streams"
HIGHER = {
    NESTED: Variant(by_autograd(nested_jvp), (SECOND,)),
    STREAMS: Variant(by_autograd(streams), (SECOND,)),
    "Taylor streams, compiled": compiled(streams, kinds=(SECOND,)),
    JET: Variant(by_jet(jets), (SECOND,), needs=JET),
    TRACE: Variant(by_autograd(trace_of_hessian), (LAPLACIAN,)),
    "forward over reverse": Variant(by_autograd(forward_over_reverse), (LAPLACIAN,)),
    COLLAPSED: Variant(by_autograd(collapsed_streams), (LAPLACIAN,)),
    "collapsed Taylor streams, compiled": compiled(collapsed_streams, kinds=(LAPLACIAN,)),
    f"{JET}, collapsed": Variant(by_jet(collapsed_jets, collapsed=True), (LAPLACIAN,), needs=JET),
}
