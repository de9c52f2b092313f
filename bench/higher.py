"""Beyond first-order projections: exact gradients, order 2 and Laplacians, against the best that PyTorch has.

`python -m bench --higher`. jet-for-pytorch (Taylor mode, also collapsed) takes part where it is installed: it needs
Python 3.12.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch.func import functional_call, grad, grad_and_value, jacfwd, vmap
from torch.func import jvp as func_jvp
from torch.nn.functional import linear

import sobolev_kernels as sk
from sobolev_kernels.math.activations import derivatives
from sobolev_kernels.student import recognise
from sobolev_kernels.testing import allowed, error

from .timing import SGEMM, SGEMM_FLOPS, TURN, interleave, quartiles, sgemm

JET = importlib.util.find_spec("jet") is not None
FUSED = "fused"
Loss = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Contest:
    """Losses of the same number, each with its own way to the derivatives; the parameters get gradients of all."""

    title: str
    student: sk.MLP
    losses: dict[str, Loss]
    flops: int

    def step(self, name: str) -> Callable[[], torch.Tensor]:
        """Loss and all gradients."""

        def run() -> torch.Tensor:
            self.student.zero_grad(set_to_none=True)
            loss = self.losses[name]()
            if loss.requires_grad:
                loss.backward()
            return loss.detach()

        return run


def multiplies(student: sk.MLP) -> int:
    return sum(p.numel() for p in student.parameters() if p.dim() == 2)


def exact(N: int, D: int, H: int, hidden: int, activation: str = "tanh") -> Contest:
    """A scalar student on values and whole gradients."""
    student = sk.MLP(D, 1, width=H, depth=hidden, activation=activation)
    x, y, dy = torch.randn(N, D), torch.randn(N, 1), torch.randn(N, D)
    targets = sk.Targets(values=y, jacobian=dy)
    parameters = {name: p.detach() for name, p in student.named_parameters()}

    def difference(m: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return (m - y).square().mean() + (g - dy).square().mean()

    def double_backward() -> torch.Tensor:
        inputs = x.detach().requires_grad_()
        m = student(inputs)
        return difference(m, torch.autograd.grad(m.sum(), inputs, create_graph=True)[0])

    def by_func(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        def total(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            m = functional_call(student, parameters, (inputs,))
            return m.sum(), m

        g, m = grad(total, has_aux=True)(x)
        return difference(m, g)

    compiled = torch.compile(grad_and_value(by_func))
    losses = {
        FUSED: lambda: sk.sobolev_loss(student, x, targets, derivatives="exact"),
        "double backward": double_backward,
        "func.grad, compiled": lambda: compiled(parameters)[1],
    }
    title = f"exact gradient: {N}, {D}→{H}×{hidden}→1, {activation}"
    return Contest(title, student, losses, 12 * N * multiplies(student))


def taylor(student: sk.MLP, x: torch.Tensor, v: torch.Tensor, collapsed: bool = False) -> tuple[torch.Tensor, ...]:
    """Streams of order 2 by hand; `collapsed` carries the sum over directions of the second derivatives."""
    layers = recognise(student)
    tensors = iter(layers.parameters)
    h, h1, h2 = x, v, torch.zeros_like(x) if collapsed else torch.zeros_like(v)
    for activation in layers.activations:
        weight = next(tensors)
        z, z1, z2 = linear(h, weight, next(tensors)), h1 @ weight.T, h2 @ weight.T
        h, d1, d2, _ = derivatives(activation, z)
        square = z1.square().sum(0) if collapsed else z1.square()
        h2, h1 = d1 * z2 + d2 * square, d1 * z1
    return h, h1, h2


def second(N: int, D: int, H: int, hidden: int, O: int, P: int) -> Contest:
    """Values, first and second derivatives along P directions."""
    student = sk.MLP(D, O, width=H, depth=hidden)
    x, y, v = torch.randn(N, D), torch.randn(N, O), torch.randn(P, N, D)
    t1, t2 = torch.randn(P, N, O), torch.randn(P, N, O)
    targets = sk.Targets(values=y, tangents=t1, seconds=t2, directions=v)

    def difference(m: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (m - y).square().mean() + (a - t1).square().mean() + (b - t2).square().mean()

    def nested() -> torch.Tensor:
        def along(direction: torch.Tensor) -> tuple[torch.Tensor, ...]:
            first = lambda inputs: func_jvp(student, (inputs,), (direction,))  # noqa: E731
            (m, a), (_, b) = func_jvp(first, (x,), (direction,))
            return m, a, b

        m, a, b = vmap(along)(v)
        return difference(m[0], a, b)

    by_hand = lambda: difference(*taylor(student, x, v))  # noqa: E731
    compiled = torch.compile(by_hand)
    losses: dict[str, Loss] = {
        FUSED: lambda: sk.sobolev_loss(student, x, targets, order=2),
        "nested jvp": nested,
        "streams by hand": by_hand,
        "streams by hand, compiled": lambda: compiled(),
    }
    if JET:
        from jet import jet

        by_jet = jet(student, (x,))

        def jets() -> torch.Tensor:
            m, a, b = vmap(lambda direction: by_jet((x, direction, torch.zeros_like(x))))(v)
            return difference(m[0], a, b)

        losses["jet-for-pytorch"] = jets
    title = f"order 2: {N}, {D}→{H}×{hidden}→{O}, P={P}"
    return Contest(title, student, losses, 6 * (1 + 2 * P) * N * multiplies(student))


def laplacian(N: int, D: int, H: int, hidden: int) -> Contest:
    """The mean square of values plus Laplacian; counted are forward, and backward with its recomputation."""
    student = sk.MLP(D, 1, width=H, depth=hidden)
    x, basis = torch.randn(N, D), torch.eye(D)[:, None, :].expand(D, N, D)

    def mean_square(m: torch.Tensor, laplace: torch.Tensor) -> torch.Tensor:
        return (m + laplace).square().mean()

    def trace() -> torch.Tensor:
        hessian = vmap(jacfwd(grad(lambda inputs: student(inputs)[0])))(x)
        return mean_square(student(x), hessian.diagonal(dim1=1, dim2=2).sum(-1, keepdim=True))

    def by_hand() -> torch.Tensor:
        m, _, laplace = taylor(student, x, basis, collapsed=True)
        return mean_square(m, laplace)

    compiled = torch.compile(by_hand)
    losses: dict[str, Loss] = {
        FUSED: lambda: mean_square(*sk.laplacian(student, x)),
        "trace of the Hessian": trace,
        "collapsed, by hand": by_hand,
        "collapsed, by hand, compiled": lambda: compiled(),
    }
    if JET:
        import jet

        by_jet = vmap(jet.laplacian(student, (torch.zeros(D),)))
        losses["jet-for-pytorch, collapsed"] = lambda: mean_square(student(x), by_jet(x))
    title = f"Laplacian: {N}, {D}→{H}×{hidden}→1"
    return Contest(title, student, losses, 2 * (8 + 5 * D) * N * multiplies(student))


def contests() -> Iterator[Contest]:
    yield exact(8192, 16, 128, 3)
    yield exact(65536, 8, 64, 3)
    yield exact(4096, 20, 20, 4, "softplus")
    yield second(8192, 16, 128, 3, 1, 4)
    yield second(4096, 8, 64, 4, 8, 2)
    yield second(65536, 8, 64, 3, 1, 1)
    yield laplacian(4096, 8, 64, 3)
    yield laplacian(1024, 8, 256, 3)


def check(contest: Contest) -> None:
    """Every loss is the same number, up to what float32 may differ."""
    expected = contest.step(FUSED)()
    for name in contest.losses:
        got = contest.step(name)()
        limit = 64 * allowed(expected, torch.float32)
        if not error(got, expected) <= limit:
            raise AssertionError(f"{contest.title}: {name} gives {got}, the fused step {expected}")


def measure(contest: Contest, rounds: int, seconds: float) -> Table:
    check(contest)
    times = interleave({n: contest.step(n) for n in contest.losses} | {SGEMM: sgemm()}, rounds, seconds, TURN)
    medians = {name: quartiles(t) for name, t in times.items()}
    rate = SGEMM_FLOPS / medians[SGEMM].median
    table = Table(title=f"{contest.title}   (sgemm {rate / 1e9:.0f} GFLOP/s)", title_justify="left")
    table.add_column("variant")
    for heading in ("ms", "quartiles", "× fused", "of sgemm"):
        table.add_column(heading, justify="right")
    for name in contest.losses:
        q1, median, q3 = medians[name]
        share = f"{contest.flops / median / rate:.0%}" if name == FUSED else "–"
        ratio = f"{median / medians[FUSED].median:.2f}"
        table.add_row(name, f"{1e3 * median:.2f}", f"{1e3 * q1:.2f} … {1e3 * q3:.2f}", ratio, share)
    return table


def print_higher(console: Console, rounds: int, seconds: float) -> None:
    torch.manual_seed(0)
    for contest in contests():
        console.print(measure(contest, rounds, seconds))
        torch.compiler.reset()
