"""What a call should give, in float64: whole Jacobians and Hessians by torch.func, and docs/math.md's losses of them.

Nothing of the package's own mathematics is used here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call, hessian, jacfwd, jacrev, vmap

Named = dict[str, torch.Tensor]


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers in float64, in memory as they come."""
    return tensor.detach().resolve_neg().double().clone(memory_format=torch.contiguous_format)


class Residual(nn.Module):
    """net(x) + skip(x), which is not an MLP."""

    def __init__(self, net: nn.Module, skip: nn.Module):
        super().__init__()
        self.net, self.skip = net, skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) + self.skip(x)


class Sine(nn.Module):
    def __init__(self, omega: float):
        super().__init__()
        self.omega = omega

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.omega * z)


class Norm(nn.Module):
    """LayerNorm over the last dimension in single steps: torch's own has wrong third derivatives (pytorch#196700)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, eps: float):
        super().__init__()
        self.weight, self.bias, self.eps = weight, bias, eps

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        centred = z - z.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias


# Where a first or second derivative jumps
KINKS = {
    nn.ReLU: lambda m, z: z, nn.LeakyReLU: lambda m, z: z, nn.ELU: lambda m, z: z, nn.Softsign: lambda m, z: z,
    nn.Softplus: lambda m, z: z - m.threshold / m.beta,
}  # fmt: skip


def twin_of(module: nn.Module) -> nn.Module:
    """The same function in float64: torch's modules, or their formula where torch has none or has it wrong."""
    if isinstance(module, Residual):
        return Residual(twin_of(module.net), twin_of(module.skip))
    if isinstance(module, nn.Sequential):
        made: dict[int, nn.Module] = {}
        for child in module:
            made.setdefault(id(child), twin_of(child))
        return nn.Sequential(*(made[id(child)] for child in module))
    if isinstance(module, nn.Linear):
        twin = nn.Linear(1, 1, bias=module.bias is not None)
        twin.weight = nn.Parameter(exact(module.weight))
        if module.bias is not None:
            twin.bias = nn.Parameter(exact(module.bias))
        return twin
    if isinstance(module, nn.LayerNorm):
        return Norm(nn.Parameter(exact(module.weight)), nn.Parameter(exact(module.bias)), module.eps)
    return Sine(module.omega) if hasattr(module, "omega") else module


def kink_distance(net: nn.Module, x: torch.Tensor) -> float:
    """The least distance of any sample to a kink of an activation."""
    least = [float("inf")]

    def look(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        least.append(float(KINKS[type(module)](module, inputs[0].detach()).abs().min()))

    hooks = [module.register_forward_pre_hook(look) for module in net.modules() if type(module) in KINKS]
    if len(x):
        net(x)
    for hook in hooks:
        hook.remove()
    return min(least)


@dataclass
class Student:
    """A module as a function of its parameters, and its derivatives for each sample, behind the head of a case. Its
    values are those before the head, where likelihoods are of these."""

    net: nn.Module
    head: Callable = lambda y: y
    before: bool = False

    @property
    def parameters(self) -> tuple[torch.Tensor, ...]:
        return tuple(p.detach() for p in self.net.parameters())

    def derivatives(self, parameters, x: torch.Tensor, order: int) -> list[torch.Tensor]:
        """y [N, O], J [N, O, D] and, of order 2, H [N, O, D, D]."""
        named = dict(zip((name for name, _ in self.net.named_parameters()), parameters, strict=True))
        plain = lambda x: functional_call(self.net, named, (x,))  # noqa: E731
        f = lambda x: self.head(plain(x))  # noqa: E731
        value = plain if self.before else f
        if not len(x):
            y = value(x)
            nothing = x.sum() + sum(p.sum() for p in parameters)
            shapes = [(0, y.shape[1], *[x.shape[1]] * n) for n in range(1, 1 + order)]
            return [y, *(x.new_zeros(shape) + 0 * nothing for shape in shapes)]
        one = lambda x: f(x[None])[0]  # noqa: E731
        jacobian = jacfwd(one) if f(x[:1]).shape[1] > x.shape[1] else jacrev(one)
        return [value(x), vmap(jacobian)(x), *[vmap(hessian(one))(x)] * (order == 2)]


def evaluate(built) -> tuple[Named, Callable[[Named], Named], float]:
    """Results by name, all gradients as a function of the results' cotangents, and the least distance of a residual to
    a kink of its loss."""
    student = behind(built.case, built.twin)
    function = loss if built.case.call == "loss" else outputs

    def results(parameters, x):
        return function(built, student.derivatives(parameters, x, built.case.order))

    named, pull, distance = torch.func.vjp(results, student.parameters, exact(built.x), has_aux=True)

    def gradients(cotangents: Named) -> Named:
        dparameters, dx = pull({name: cotangents.get(name, torch.zeros_like(t)) for name, t in named.items()})
        return {"dx": dx} | {f"dparameter {i}": d for i, d in enumerate(dparameters)}

    return {name: t.detach() for name, t in named.items()}, gradients, float(distance)


def outputs(built, jets: list[torch.Tensor]):
    """Results of jvp, vjp, jet, laplacian and hvp."""
    case, v, columns = built.case, built.vectors, built.case.columns
    y, J, *H = jets
    J = J[..., columns]
    H = H[0][..., columns, :][..., columns] if H else None
    infinity = torch.tensor(float("inf"), dtype=torch.float64)
    if case.call == "vjp":
        named = {"y": y, "derivative": torch.einsum("nod,rno->rnd", J, v)}
    elif case.call == "hvp":
        named = {"y": y, "second": torch.einsum("node,pnd,pne->pno", H, v, exact(built.other))}
    elif case.call == "laplacian":
        along = torch.einsum("node,pnd,pne->no", H, v, v)
        estimate = case.distribution not in ("given", "basis") or case.unbiased
        named = {"y": y, "second": along / case.count if estimate else along}
    else:
        named = {"y": y, "derivative": torch.einsum("nod,pnd->pno", J, v)}
        if case.order == 2 and case.call == "jet":
            named["second"] = torch.einsum("node,pnd,pne->pno", H, v, v)
    return named, infinity


def loss(built, jets: list[torch.Tensor]):
    """docs/math.md, sections 1, 9, 10 and 11: the loss and its terms."""
    case, columns, N = built.case, built.case.columns, built.case.N
    scale, weights = units(built)
    predicted = seen(built, [jets[0], *restricted(jets[1:], columns, scale)])
    wanted = targets_of(built, columns, scale)
    terms, distances = [], [torch.tensor(float("inf"), dtype=torch.float64)]
    for term, (prediction, target) in enumerate(zip(predicted, wanted, strict=True)):
        rho = case.derivative_loss if term else case.value_loss
        if target is None:
            terms.append(None)
            continue
        dims = (1,) if term == 0 else (1, 2) if case.projection == "exact" else (0, 2)
        samples, weight = weights_of(built, term)
        if rho[0] in LIKELY:
            prediction = logits(case, prediction)
        each, distance = residual_term(rho, prediction, target, weight, dims)
        each = each * samples
        each = each / max(1, N) if case.reduction == "mean" else each
        terms.append(each if case.reduction == "none" else each.sum())
        distances.append(distance)
    known = [w * term for w, term in zip(weights, terms, strict=True) if w]
    zero = 0 * sum(jet.sum() for jet in jets) + jets[0].new_zeros((N,) if case.reduction == "none" else ())
    named = {"loss": sum(known, zero)}
    if case.return_terms:
        named |= {n: t for n, t in zip(("value", "derivative", "second"), terms, strict=False) if t is not None}
    return named, torch.stack(distances).min()


def units(built) -> tuple[torch.Tensor | None, tuple[float, ...]]:
    """What derivatives with respect to each column are multiplied by, and the weights of the terms."""
    case = built.case
    if case.weights != "differential-ml":
        scale = built.weights.get("input_scale")
        return None if scale is None else exact(scale), case.weights or (1.0,) * (1 + case.order)
    jacobian = exact(built.targets["jacobian"]).nan_to_num().reshape(case.N, case.O, case.W)
    counts = counting(built, "jacobian")
    rms = ((jacobian.square() * counts).sum((0, 1)) / counts.sum((0, 1)).clamp(min=1)).sqrt()
    # a column without a size of its own takes that of the others
    usual = rms.square().mean().sqrt()
    scale = 1 / torch.where(rms > 0, rms, torch.where(usual > 0, usual, 1.0))
    return scale, (1 / (1 + case.W), case.W / (1 + case.W))


def restricted(derivatives: list, columns: list[int], scale: torch.Tensor | None) -> list[torch.Tensor]:
    """J [N, O, W] and H [N, O, W, W] in the columns and in their units."""
    J, *H = derivatives
    unit = torch.ones(len(columns), dtype=torch.float64) if scale is None else scale
    return [J[..., columns] * unit, *(h[..., columns, :][..., columns] * unit[:, None] * unit for h in H)]


def seen(built, jets: list[torch.Tensor]) -> list[torch.Tensor]:
    """Values, and derivatives as they are compared: projected on the vectors of the call, or whole."""
    case, v = built.case, built.vectors
    v = v * exact(built.weights["derivative_weight"]) if case.masks else v
    y, J, *H = jets
    if case.projection == "exact":
        return [y, J]
    if case.projection == "cotangents":
        return [y, torch.einsum("nod,rno->rnd", J, v)]
    return [y, torch.einsum("nod,pnd->pno", J, v), *(torch.einsum("node,pnd,pne->pno", h, v, v) for h in H)]


def targets_of(built, columns: list[int], scale: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Target values, derivatives and second derivatives as those of the student."""
    case, N, O, W = built.case, built.case.N, built.case.O, built.case.W
    given = {name: exact(t).nan_to_num() for name, t in built.targets.items() if isinstance(t, torch.Tensor)}
    values = given["values"].reshape(N, O) if "values" in given else None
    values = values.exp() if values is not None and labels_are_logarithms(case) else values
    if built.teacher_twin is not None:
        teacher = behind(built.case, built.teacher_twin)
        jets = teacher.derivatives(teacher.parameters, exact(built.x), case.order)
        y, *rest = seen(built, [jets[0], *restricted(jets[1:], columns, scale)])
        return [probabilities(case, y) if values is None else values, *rest]
    unit = torch.ones(W, dtype=torch.float64) if scale is None else scale
    nothing = torch.zeros(N, O, W, dtype=torch.float64), torch.zeros(N, O, W, W, dtype=torch.float64)
    J = given["jacobian"].reshape(N, O, W) * unit if "jacobian" in given else nothing[0]
    H = given["hessian"] * unit[:, None] * unit if "hessian" in given else nothing[1]
    _, *dense = seen(built, [torch.zeros(N, O, dtype=torch.float64), J, *[H] * (case.order == 2)])
    first = dense[0] if "jacobian" in given else given.get("tangents")
    first = given["vjps"] * unit if "vjps" in given else first
    second = dense[1] if "hessian" in given else given.get("seconds")
    return [values, first, *[second] * (case.order == 2)]


def weight(built, name: str, *shape: int) -> torch.Tensor:
    """A weight as it broadcasts to `shape`, ones if there is none."""
    given = built.weights.get(f"{name}_weight")
    return torch.ones(shape, dtype=torch.float64) if given is None else exact(given).reshape(shape)


def weight_of_entries(built, masks: bool) -> torch.Tensor:
    """What multiplies ρ of each entry of a Jacobian [N, O, W], beside the weights of samples; with the mask of columns
    where it is that of residuals, or always if `masks`."""
    case = built.case
    N, O, W = case.N, case.O, case.W
    shapes = {"[N, O]": (N, O, 1), "[N, O, W]": (N, O, W), "mask": (N, 1, W) if masks or not case.masks else None}
    derivative = shapes.get(case.derivative_weight)
    ones = torch.ones(N, O, W, dtype=torch.float64)
    ones = ones if derivative is None else ones * weight(built, "derivative", *derivative)
    return ones * weight(built, "output", *((O, 1) if case.output_weight else (1, 1)))


def weights_of(built, term: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the samples [N], and of the residuals of a term as it broadcasts to them."""
    case = built.case
    samples = weight(built, "sample", case.N)
    if not term:
        return samples, weight(built, "output", case.O)
    samples = samples * weight(built, "derivative", case.N) if case.derivative_weight == "[N]" else samples
    if case.masks:  # a sample without a known column has no derivative
        samples = samples * (exact(built.weights["derivative_weight"]) != 0).any(1)
    return samples, by_projection(case, weight_of_entries(built, masks=False))


def by_projection(case, entries: torch.Tensor) -> torch.Tensor:
    """What belongs to the entries of a Jacobian [N, O, W], for residuals along directions or cotangents."""
    if case.projection == "exact":
        return entries
    if case.projection == "cotangents":
        return entries.permute(1, 0, 2) if case.distribution == "basis" else entries[:, 0]
    return entries.permute(2, 0, 1) if case.distribution == "basis" else entries[..., 0]


def counting(built, name: str) -> torch.Tensor:
    """Whether the residuals of a target's numbers have a weight other than 0, in the shape of the target."""
    case = built.case
    samples, entries = weight(built, "sample", case.N)[:, None, None], weight_of_entries(built, masks=True)
    if name == "values":
        return samples[..., 0] * weight(built, "output", case.O) != 0
    if case.derivative_weight == "[N]":
        samples = samples * weight(built, "derivative", case.N)[:, None, None]
    counts = samples * entries != 0
    if name == "jacobian":
        return counts
    if name == "hessian":
        return counts[..., None] & counts[..., None, :]
    each = by_projection(case, counts)
    return each.expand(case.count, *each.shape[-2:])


RHO = {
    "mse": lambda r: r**2,
    "l1": lambda r: r.abs(),
    "huber": lambda r, delta=1.0: torch.where(r.abs() < delta, r**2 / 2, delta * (r.abs() - delta / 2)),
    "log_cosh": lambda r: r.abs() + torch.log1p(torch.exp(-2 * r.abs())) - math.log(2),
}
COUPLED = {
    "relative_mse": lambda rr, aa, at, tt, ww, eps=1e-8: rr / (tt + eps),
    "cosine": lambda rr, aa, at, tt, ww, eps=1e-12: torch.where(ww == 0, 0.0, 1 - at / (aa * tt + eps).sqrt()),
}


def log_softmax(a: torch.Tensor) -> torch.Tensor:
    """In single steps, as log_sigmoid: vmap over second derivatives of torch's own warns that it resizes an output."""
    a = a - a.amax(-1, keepdim=True).detach()
    return a - a.exp().sum(-1, keepdim=True).log()


HEADS = {
    "softmax": lambda a: log_softmax(a).exp(),
    "log_softmax": lambda a: log_softmax(a),
    "sigmoid": torch.sigmoid,
    "log_sigmoid": lambda a: a.clamp(max=0) - torch.log1p(torch.exp(-a.abs())),
}
# Of logarithms of probabilities, or of logits, and of probabilities.
LIKELY = {
    "kl": lambda a, p: torch.xlogy(p, p) - p * a,
    "cross_entropy": lambda a, p: -p * a,
    "bce": lambda a, p: torch.nn.functional.softplus(a, threshold=800.0) - p * a,
}


def behind(case, net: nn.Module) -> Student:
    if case.head is None:
        return Student(net)
    name, temperature = (*case.head, 1.0)[:2]
    return Student(net, lambda y: HEADS[name](y / temperature), case.value_loss[0] in LIKELY)


def logits(case, y: torch.Tensor) -> torch.Tensor:
    """What likelihoods are of."""
    a = y / (*case.head, 1.0)[1]
    return log_softmax(a) if "softmax" in case.head[0] else a


def probabilities(case, y: torch.Tensor) -> torch.Tensor:
    """Those of a teacher's outputs, if his values are looked at as such."""
    if case.value_loss[0] not in LIKELY:
        return y
    a = logits(case, y)
    return a.exp() if "softmax" in case.head[0] else torch.sigmoid(a)


def labels_are_logarithms(case) -> bool:
    return case.value_loss[0] == "kl" and case.head[0] == "log_softmax"


def label(case, target: torch.Tensor) -> torch.Tensor:
    """Numbers as labels, which no dtype rounds."""
    if case.value_loss[0] not in LIKELY:
        return target
    return -target.abs() if labels_are_logarithms(case) else target.abs().clamp(max=1)


JUMPS = {"l1": lambda r: r.abs(), "huber": lambda r, delta=1.0: (r.abs() - delta).abs()}


def residual_term(rho: tuple, a: torch.Tensor, t: torch.Tensor, w: torch.Tensor, dims: tuple[int, ...]):
    """A term for each sample [N], over the dimensions `dims` of its numbers, and the least distance to a kink of ρ."""
    name, *parameters = rho
    if name in LIKELY:
        each = w * LIKELY[name](a, t)
        each = each.mean(dims) if name == "bce" else each.sum(dims)
        return each, torch.tensor(float("inf"), dtype=torch.float64)
    r = a - t
    if name in COUPLED:
        sums = ((w * product).sum(dims) for product in (r * r, a * a, a * t, t * t, torch.ones_like(t)))
        return COUPLED[name](*sums, *parameters), torch.tensor(float("inf"), dtype=torch.float64)
    each = (w * RHO[name](r, *parameters)).mean(dims)
    if name not in JUMPS or not r.numel():
        return each, torch.tensor(float("inf"), dtype=torch.float64)
    return each, JUMPS[name](r, *parameters).min() / (1 + a.abs().max() + t.abs().max())
