"""Every public function, and every way of asking for one derivative more: a right number or NotProvided, never a zero.

What should come is written with torch.func alone, of the same student.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, hessian, jacfwd, jacrev, vmap
from torch.utils.checkpoint import checkpoint

import sobolev_kernels as sk
from sobolev_kernels.testing.rule import ANOTHER_WAY

N, D, P = 3, 2, 2
NET = sk.MLP(D, 1, width=4, depth=1)


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, V, U, W = numbers(N, D, seed=1), numbers(P, N, D, seed=2), numbers(P, N, 1, seed=3), numbers(P, N, D, seed=4)
TARGETS = sk.Targets(
    values=numbers(N, 1, seed=5), jacobian=numbers(N, 1, D, seed=6), hessian=numbers(N, 1, D, D, seed=7)
)
FIRST = sk.Targets(values=TARGETS.values, jacobian=TARGETS.jacobian)
EXTRA = {"directions": sk.Directions.given(V), "weights": (0.5, 2.0)}


def loss(student, x, **settings):
    return sk.sobolev_loss(student, x, FIRST, **EXTRA, **settings)


def terms(student, x, **settings):
    weights = {"directions": EXTRA["directions"], "weights": (0.5, 2.0, 1.5), "order": 2}
    return sk.sobolev_loss(student, x, TARGETS, return_terms=True, **weights, **settings)


# Each gives one tensor of a student and x
FUNCTIONS = {
    "loss": loss,
    "loss of each sample": lambda m, x, **s: loss(m, x, reduction="none", **s),
    "loss of terms": lambda m, x, **s: terms(m, x, **s).loss,
    "value term": lambda m, x, **s: terms(m, x, **s).value,
    "second term": lambda m, x, **s: terms(m, x, **s).second,
    "derivative term of each sample": lambda m, x, **s: terms(m, x, reduction="none", **s).derivative,
    "values": lambda m, x, **s: sk.jvp(m, x, V, **s)[0],
    "jvp": lambda m, x, **s: sk.jvp(m, x, V, **s)[1],
    "vjp": lambda m, x, **s: sk.vjp(m, x, U, **s)[1],
    "jet": lambda m, x, **s: sk.jet(m, x, V, **s)[2],
    "laplacian": lambda m, x, **s: sk.laplacian(m, x, **s)[1],
    "hvp": lambda m, x, **s: sk.hvp(m, x, V, W, **s)[1],
}


def truth(name: str, student, x: torch.Tensor) -> torch.Tensor:
    """The same of any function of x [N, D], where the sample n of the output depends on that of x alone."""
    one = lambda z: student(z[None])[0]  # noqa: E731
    y, jacobian, second = vmap(one)(x), vmap(jacrev(one))(x), vmap(jacrev(jacrev(one)))(x)
    first_along = torch.einsum("nod,pnd->pno", jacobian, V)
    along = lambda a, b: torch.einsum("node,pnd,pne->pno", second, a, b)  # noqa: E731
    residuals = (
        y - TARGETS.values,
        first_along - torch.einsum("nod,pnd->pno", TARGETS.jacobian, V),
        along(V, V) - torch.einsum("node,pnd,pne->pno", TARGETS.hessian, V, V),
    )
    each = [residuals[0].square().mean(1)] + [r.square().mean((0, 2)) for r in residuals[1:]]
    return {
        "loss": lambda: (0.5 * each[0] + 2.0 * each[1]).mean(),
        "loss of each sample": lambda: 0.5 * each[0] + 2.0 * each[1],
        "loss of terms": lambda: (0.5 * each[0] + 2.0 * each[1] + 1.5 * each[2]).mean(),
        "value term": lambda: each[0].mean(),
        "second term": lambda: each[2].mean(),
        "derivative term of each sample": lambda: each[1],
        "values": lambda: y,
        "jvp": lambda: first_along,
        "vjp": lambda: torch.einsum("nod,pno->pnd", jacobian, U),
        "jet": lambda: along(V, V),
        "laplacian": lambda: torch.einsum("nodd->no", second),
        "hvp": lambda: along(V, W),
    }[name]()


class Called(torch.nn.Module):
    """A function of (student, x) whose parameters are those of the student, as `functional_call` wants them."""

    def __init__(self, function, dress):
        super().__init__()
        self.net, self.function, self.dress = NET, function, dress

    def forward(self, x):
        return self.function(self.dress(self.net), x)


class Wrapped(torch.nn.Module):
    """Something that is no Sequential, around one, and does `more` than the network."""

    def __init__(self, net, more=0.0):
        super().__init__()
        self.net, self.more = net, more

    def forward(self, x):
        y = self.net(x)
        return y + self.more * x[:, :1] if self.more else y


def more_than(net):
    return Wrapped(net, more=0.7)


def laplacian_of(net):
    """Of samples [N, D], with torch.func alone."""
    return lambda x: vmap(lambda z: jacrev(jacrev(lambda z: net(z[None])[0]))(z).diagonal(dim1=1, dim2=2).sum(1))(x)


class Dress(NamedTuple):
    """How the network comes, and the same for the truth."""

    wear: Callable = lambda net: net
    settings: dict = {}  # noqa: RUF012
    truth: Callable = lambda net: net


DRESSES = {
    "an MLP": Dress(),
    "an MLP, by the reference": Dress(settings={"backend": "reference"}),
    "an MLP in another dress": Dress(Wrapped),
    "a module": Dress(more_than, truth=more_than),
    "a function": Dress(lambda net: lambda x: net(x) + 0.0 * x[:, :1]),
    "a fused derivative": Dress(lambda net: lambda x: sk.laplacian(net, x)[1], truth=laplacian_of),
}


def leaves() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    parameters = {f"net.{name}": p.detach().double().clone().requires_grad_() for name, p in NET.named_parameters()}
    return X.clone().requires_grad_(), parameters


def weighted(result: torch.Tensor) -> torch.Tensor:
    """A scalar that depends on the result in another way for each number, and not linearly."""
    c = torch.linspace(0.5, 1.5, max(1, result.numel()), dtype=torch.float64).reshape(result.shape)
    return (c * result + result.square()).sum()


# The ways: each takes f(x, parameters), and gives tensors
def once(f, x, p):
    return torch.autograd.grad(weighted(f(x, p)), [x, *p.values()], materialize_grads=True)


def twice(f, x, p):
    inputs = [x, *p.values()]
    gradients = torch.autograd.grad(weighted(f(x, p)), inputs, create_graph=True, materialize_grads=True)
    total = sum((g * torch.linspace(1, 2, g.numel(), dtype=g.dtype).reshape(g.shape)).sum() for g in gradients)
    return torch.autograd.grad(total, inputs, materialize_grads=True)


def of_the_parameters_alone(f, x, p):
    (gradient,) = torch.autograd.grad(weighted(f(x, p)), x, create_graph=True)
    gradient.square().sum().backward(inputs=list(p.values()))
    return [q.grad for q in p.values()]


def of_a_head(f, x, p):
    """Gradients to x that depend on a head, which is all that is trained."""
    head = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad((head * f(x, p)).square().sum(), x, create_graph=True)
    gradient.square().sum().backward(inputs=[head])
    return [head.grad]


def the_double_backward_trick(f, x, p):
    return torch.autograd.functional.jvp(lambda x: f(x, p), x.detach(), W[0])


def functional_hvp(f, x, p):
    return torch.autograd.functional.hvp(lambda x: weighted(f(x, p)), x.detach(), W[0])


def functional_vectorized(f, x, p):
    return [torch.autograd.functional.jacobian(lambda x: f(x, p), x.detach(), vectorize=True)]


def functional_forward(f, x, p):
    how = {"vectorize": True, "strategy": "forward-mode"}
    return [torch.autograd.functional.jacobian(lambda x: f(x, p), x.detach(), **how)]


def batched_gradients(f, x, p):
    result = weighted(f(x, p))
    rows = torch.tensor([1.0, -2.0], dtype=torch.float64)
    return torch.autograd.grad(result, [x, *p.values()], rows, is_grads_batched=True, materialize_grads=True)


def forward_mode(f, x, p):
    with forward_ad.dual_level():
        return [forward_ad.unpack_dual(f(forward_ad.make_dual(x.detach(), W[0]), detached(p))).tangent]


def forward_mode_of_a_parameter(f, x, p):
    name, parameter = next(iter(p.items()))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(parameter.detach(), torch.ones_like(parameter))
        return [forward_ad.unpack_dual(f(x.detach(), detached(p) | {name: dual})).tangent]


def forward_over_reverse(f, x, p):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach().requires_grad_(), W[0])
        (gradient,) = torch.autograd.grad(weighted(f(dual, p)), dual, create_graph=True)
        return [forward_ad.unpack_dual(gradient).tangent]


def func_grad(f, x, p):
    return [torch.func.grad(lambda x: weighted(f(x, detached(p))))(x.detach())]


def func_grad_of_parameters(f, x, p):
    return list(torch.func.grad(lambda p: weighted(f(x.detach(), p)))(detached(p)).values())


def func_jacrev_of_parameters(f, x, p):
    return list(jacrev(lambda p: f(x.detach(), p))(detached(p)).values())


def func_jacfwd(f, x, p):
    return [jacfwd(lambda x: f(x, detached(p)))(x.detach())]


def func_hessian(f, x, p):
    return [hessian(lambda x: weighted(f(x, detached(p))))(x.detach())]


def func_vmap(f, x, p):
    many = {name: torch.stack([q, 2 * q]) for name, q in detached(p).items()}
    return [vmap(lambda p: f(x.detach(), p))(many)]


def checkpointed(f, x, p):
    return once(lambda x, p: checkpoint(f, x, p, use_reentrant=False), x, p)


def inference(f, x, p):
    with torch.inference_mode():
        return [f(x.detach().clone(), detached(p)).clone()]


def detached(p):
    return {name: q.detach() for name, q in p.items()}


WAYS = [
    once, twice, of_the_parameters_alone, of_a_head, the_double_backward_trick, functional_hvp, functional_vectorized,
    functional_forward, batched_gradients, forward_mode, forward_mode_of_a_parameter, forward_over_reverse, func_grad,
    func_grad_of_parameters, func_jacrev_of_parameters, func_jacfwd, func_hessian, func_vmap, checkpointed, inference,
]  # fmt: skip
# Ways that torch.func cannot go, and what is the same for it
SAME = {checkpointed: once}
# What README promises, so that no refusal will do
ONCE = {once, checkpointed, inference}
RIGHT = {name: ONCE if name in ("an MLP", "an MLP in another dress") else set(WAYS) for name in DRESSES} | {
    "a fused derivative": set()
}


def outcome(way, function, dress) -> list[torch.Tensor | None]:
    """What came, flat."""
    call = Called(function, dress)
    found = way(lambda x, p: functional_call(call, p, (x,)), *leaves())
    return [tensor for part in found for tensor in (part if isinstance(part, tuple) else [part])]


@pytest.mark.parametrize("dress", DRESSES)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_right_or_refused(way, name, dress):
    wear, settings, true_wear = DRESSES[dress]
    try:
        got = outcome(way, lambda m, x: FUNCTIONS[name](m, x, **settings), wear)
    except sk.NotProvided:
        assert way not in RIGHT[dress]
        return
    expected = outcome(SAME.get(way, way), lambda m, x: truth(name, m, x), true_wear)
    for a, b in zip(got, expected, strict=True):
        if a is None or b is None:
            assert not any(tensor is not None and tensor.any() for tensor in (a, b)), "None, and it is not zero"
        else:
            torch.testing.assert_close(*torch.broadcast_tensors(a, b), **ANOTHER_WAY)
