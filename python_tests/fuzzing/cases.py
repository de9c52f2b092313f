"""A `Case`: everything about one random call but its numbers. A function of (seed, number), in plain values."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import sobolev_kernels as sk
from sobolev_kernels.math.directions import DISTRIBUTIONS
from sobolev_kernels.math.heads import HEADS
from sobolev_kernels.math.losses import HEADS_OF
from sobolev_kernels.testing.problems import CURVED

FLAT = tuple(name for name in sk.ACTIVATIONS if name not in CURVED)
RECOGNISED = ("sequential", "nested", "mlp", "tied")
UNRECOGNISED = ("lambda", "residual", "norm")
RANDOM = tuple(name for name in DISTRIBUTIONS if name != "basis")
# What can be a view: x, parameters, targets, directions or cotangents, and weights with scales
GROUPS = ("x", "parameters", "targets", "vectors", "weights", "cotangents")
HALF = ("bfloat16", "float16")
# A call of the oracle takes all second derivatives; so many numbers take a tenth of a second.
MOST_ENTRIES = 40_000


@dataclass(frozen=True)
class Case:
    """Every field has the plainest value as its default; the shrinker goes there."""

    seed: int = 0
    number: int = 0
    call: str = "loss"
    student: str = "sequential"
    dtype: str = "float64"
    N: int = 3
    D: int = 2
    O: int = 1
    P: int = 1
    hidden: tuple[int, ...] = (2,)
    activations: tuple[tuple, ...] = (("tanh",), ("identity",))
    biases: tuple[bool, ...] = (True, True)
    views: tuple[str, ...] = ()
    mode: str = "grad"
    threads: int = 1
    side: str | None = None
    order: int = 1
    projection: str = "directions"
    distribution: str = "given"
    shared: bool = False
    unbiased: bool = False
    drawn: str = "seed"
    in_targets: bool = False
    wrt: tuple[int, ...] | None = None
    input_scale: bool = False
    values: str = "[N, O]"
    first: str = "jacobian"
    second: str = "hessian"
    value_loss: tuple = ("mse",)
    derivative_loss: tuple = ("mse",)
    head: tuple | None = None
    weights: tuple[float, ...] | str | None = None
    sample_weight: bool = False
    output_weight: bool = False
    derivative_weight: str | None = None
    missing: bool = False
    reduction: str = "mean"
    return_terms: bool = False
    module: bool = False

    @property
    def W(self) -> int:
        return self.D if self.wrt is None else len(self.wrt)

    @property
    def columns(self) -> list[int]:
        return list(range(self.D) if self.wrt is None else self.wrt)

    @property
    def count(self) -> int:
        """How many directions or cotangents there are."""
        n = self.O if self.projection == "cotangents" else self.W
        return n if self.distribution == "basis" else self.P

    @property
    def masks(self) -> bool:
        """Whether it is the directions that have masked columns."""
        return self.derivative_weight == "mask" and self.projection == "directions" and self.distribution != "basis"

    @property
    def recognised(self) -> bool:
        return self.student in RECOGNISED

    @property
    def kind(self) -> str:
        order = f", order {self.order}" if self.call in ("loss", "jet") else ""
        along = f", {self.projection}" if self.call == "loss" else ""
        return f"{self.call}{order}{along}{'' if self.recognised else ', not an MLP'}"

    def changes(self) -> str:
        """What is not the default, as `--set` takes it."""
        skip = ("seed", "number")
        said = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skip}
        return ", ".join(f"{name}={value!r}" for name, value in said.items() if value != getattr(Case, name))


def case_of(seed: int, number: int) -> Case:
    """The case of this number."""
    rng = random.Random(f"{seed}/{number}")
    call = rng.choice(("loss",) * 8 + ("jvp", "vjp", "jet", "laplacian", "hvp"))
    while True:
        case = replace(drawn(rng, call), seed=seed, number=number)
        if not faults(case):
            # by numbers of its own, so that those before it stayed what they were
            return behind_head(random.Random(f"{seed}/{number}/head"), case) if call == "loss" else case


def chance(rng: random.Random, probability: float) -> bool:
    return rng.random() < probability


def size(rng: random.Random) -> int:
    return rng.choice((1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, rng.randint(9, 17), rng.randint(18, 40)))


def drawn(rng: random.Random, call: str) -> Case:
    """A case that may contradict itself."""
    order = 2 if call in ("laplacian", "hvp") else rng.choice((1, 1, 2)) if call in ("loss", "jet") else 1
    student = rng.choice(RECOGNISED * 3 + UNRECOGNISED)
    depth = rng.choice((0, 1, 1, 2, 2, 3, 4))
    hidden = [size(rng) for _ in range(depth)]
    if student in ("mlp", "tied", "residual"):
        hidden = hidden[:1] * depth
    table = tuple(CURVED) if order == 2 and chance(rng, 0.95) else tuple(sk.ACTIVATIONS)
    activations = [activation(rng, table) for _ in range(depth)]
    biases = [chance(rng, 0.8) for _ in range(depth + 1)]
    if student in ("mlp", "tied"):
        activations, biases = activations[:1] * depth, biases[:1] * (depth + 1)
    last = activation(rng, table) if chance(rng, 0.2) else ("identity",)
    views = GROUPS if chance(rng, 0.3) else tuple(g for g in GROUPS if chance(rng, 0.15))
    N = rng.choice((0, 1, 2, 3, 5, 7, 8, 15, 16, 17, 33, 63, 64, 65, 65, 129))
    case = Case(
        call=call, student=student, order=order, hidden=tuple(hidden), activations=(*activations, last),
        biases=tuple(biases), dtype=rng.choice(("float64", "float32", "float32", "bfloat16", "float16")), views=views,
        N=N, D=size(rng), O=rng.choice((1, 1, 1, size(rng), size(rng))), P=size(rng),
        mode=rng.choice(("grad",) * 6 + ("no_grad", "x", "parameters", "some")),
        threads=2 if N >= 63 and chance(rng, 0.3) else 1,
        side=rng.choice((None, None, "tangents", "gradients")),
    )  # fmt: skip
    wrt = tuple(rng.sample(range(case.D), rng.randint(1, case.D))) if chance(rng, 0.25) else None
    case = projected(rng, replace(case, wrt=wrt))
    return loss(rng, case) if call == "loss" else case


def activation(rng: random.Random, table: tuple[str, ...]) -> tuple:
    """A row of the table, half of the time with parameters of its own."""
    name = rng.choice(table)
    parameters = {
        "leaky_relu": lambda: (rng.uniform(-0.3, 0.9),),
        "elu": lambda: (rng.uniform(0.2, 2),),
        "softplus": lambda: (rng.uniform(0.5, 3), rng.uniform(1, 20)),
        "sin": lambda: (rng.uniform(0.3, 4),),
    }  # fmt: skip
    return (name, *parameters[name]()) if name in parameters and chance(rng, 0.5) else (name,)


def projected(rng: random.Random, case: Case) -> Case:
    """What derivatives are projected on."""
    kinds = {"vjp": ("cotangents",), "loss": ("directions", "directions", "cotangents", "exact")}
    projection = "directions" if case.order == 2 else rng.choice(kinds.get(case.call, ("directions",)))
    distribution = "given" if case.call == "hvp" else rng.choice((*RANDOM, "basis", "given", "given"))
    return replace(
        case, projection=projection, distribution="basis" if projection == "exact" else distribution,
        shared=distribution != "basis" and chance(rng, 0.3), unbiased=distribution != "given" and chance(rng, 0.3),
        drawn=rng.choice(("seed", "offset", "generator")), in_targets=case.call == "loss" and chance(rng, 0.3),
    )  # fmt: skip


def loss(rng: random.Random, case: Case) -> Case:
    """Targets, weights and residual functions."""
    weights = rng.choice((None, "numbers", "numbers", "zeros", "differential-ml"))
    if weights in ("numbers", "zeros"):
        zero = 0.6 if weights == "zeros" else 0.0
        weights = tuple(0.0 if chance(rng, zero) else rng.choice((0.5, 1.0, 3.0)) for _ in range(1 + case.order))
    first = ("jacobian", "jacobian", "teacher", "function", "none")
    first += {"directions": ("tangents",), "cotangents": ("vjps",), "exact": ()}[case.projection]
    choices = replace(
        case, weights=weights, first=rng.choice(first), second=rng.choice(("hessian", "seconds", "none")),
        values=rng.choice(("[N, O]", "[N, O]", "[N, O]", "[N]", "none")),
        value_loss=formula(rng), derivative_loss=formula(rng), input_scale=chance(rng, 0.25),
        sample_weight=chance(rng, 0.3), output_weight=chance(rng, 0.3), reduction=rng.choice(("mean", "sum", "none")),
        return_terms=chance(rng, 0.5), module=chance(rng, 0.2),
    )  # fmt: skip
    # a teacher gives second derivatives too
    taught = choices.first in ("teacher", "function")
    if chance(rng, 0.4):
        weight = rng.choice((None, "[N]", "[N, O]", "[N, O, W]", "mask"))
        choices = replace(choices, derivative_weight=weight, missing=chance(rng, 0.5))
    return replace(choices, second="teacher" if taught and case.order == 2 else choices.second)


def behind_head(rng: random.Random, case: Case) -> Case:
    """The case, or one behind a head, perhaps with a loss of its values that needs it."""
    if not chance(rng, 0.25):
        return case
    name = rng.choice(tuple(HEADS))
    head = (name, rng.uniform(0.5, 3)) if chance(rng, 0.7) else (name,)
    losses = [loss for loss, heads in HEADS_OF.items() if name in heads]
    value_loss = (rng.choice(losses),) if chance(rng, 0.6) else case.value_loss
    return replace(case, head=head, value_loss=value_loss)


def formula(rng: random.Random) -> tuple:
    name = rng.choice((*sk.LOSSES, *sk.COUPLED))
    parameters = {"huber": rng.uniform(0.2, 2), "relative_mse": 10 ** rng.uniform(-8, 0)}
    return (name, parameters[name]) if name in parameters and chance(rng, 0.7) else (name,)


def faults(case: Case) -> list[str]:
    """Why a case is not one: it contradicts itself, or takes too long."""
    depth, layers = len(case.hidden), (case.hidden, case.activations[:-1], case.biases)
    n = case.O if case.projection == "cotangents" else case.W
    entries = case.N * case.O * case.D * (case.D if case.order == 2 else 1) * (depth + 1)
    # only a function knows how it computes in half precision, and the parts of a tied weight's gradient are rounded
    unknown = case.student == "tied" or not case.recognised or (case.call == "loss" and case.first == "function")
    alike = case.student in ("mlp", "tied")
    projection = {"loss": case.projection, "vjp": "cotangents"}.get(case.call, "directions")
    wrong = {
        "sizes": not (len(case.activations) == len(case.biases) == depth + 1) or entries > MOST_ENTRIES,
        "columns": case.wrt is not None and not set(case.wrt) <= set(range(case.D)),
        "layers": alike and any(len(set(parts)) > 1 for parts in layers),
        # each direction of a function is a graph of its own
        "directions": not case.recognised and case.count > 12,
        "depth": depth < {"tied": 2, "norm": 1}.get(case.student, 0),
        "half precision": case.dtype in HALF and unknown,
        "orthonormal": case.distribution == "orthonormal" and case.P > n,
        "given": case.distribution == "given" and case.unbiased,
        "basis": case.distribution == "basis" and case.shared,
        "exact": case.projection == "exact" and (case.distribution != "basis" or case.unbiased or case.in_targets),
        "hvp": case.call == "hvp" and (case.distribution != "given" or case.shared),
        "projection": case.projection != projection or (case.order == 2 and projection != "directions"),
    }
    wrong |= faults_of_loss(case) if case.call == "loss" else {}
    return [name for name, is_wrong in wrong.items() if is_wrong]


def faults_of_loss(case: Case) -> dict[str, bool]:
    numbers = case.weights if isinstance(case.weights, tuple) else (1.0,) * (1 + case.order)
    taught, second = case.first in ("teacher", "function"), case.second if case.order == 2 else None
    projected = case.first in ("tangents", "vjps") or second == "seconds"
    fixed = case.distribution in ("given", "basis") or case.drawn != "generator"
    along = {"tangents": "directions", "vjps": "cotangents"}.get(case.first, case.projection)
    mixed = case.projection == "cotangents" and case.distribution != "basis"
    unequal = case.first == "tangents" or second == "seconds"
    balanced = case.weights == "differential-ml"
    heads = HEADS_OF.get(case.value_loss[0])
    return {
        "likelihood": heads is not None and (case.head is None or case.head[0] not in heads),
        "number of weights": len(numbers) != 1 + case.order,
        "balance": balanced and (case.order == 2 or case.first != "jacobian" or case.input_scale),
        "values": case.values == "none" and not taught and numbers[0] != 0,
        "[N]": case.values == "[N]" and case.O != 1,
        "first": case.first == "none" and numbers[1] != 0,
        "second": second == "none" and numbers[2] != 0,
        "teacher": second is not None and taught != (second == "teacher"),
        "something": case.first == "none" and case.values == "none",
        "belongs": projected and (along != case.projection or not fixed),
        "scaled or masked": unequal and (case.input_scale or case.masks),
        "mixed outputs": mixed and (case.output_weight or case.derivative_weight == "[N, O]"),
        "entries": case.derivative_weight == "[N, O, W]" and (case.distribution != "basis" or case.order == 2),
    }


def simpler(case: Case) -> Iterator[Case]:
    """Cases that are simpler in one way, the most first."""
    for field in fields(Case):
        kept = field.name in ("seed", "number", "call", "order", "projection")
        if not kept and getattr(case, field.name) != field.default:
            yield replace(case, **{field.name: field.default})
    depth = len(case.hidden)
    for i in range(depth):
        cut = lambda parts, i=i: parts[:i] + parts[i + 1 :]  # noqa: E731
        yield replace(case, hidden=cut(case.hidden), activations=cut(case.activations), biases=cut(case.biases))
    for i, layer in enumerate(case.activations):
        plain = ("identity",) if i == depth else ("tanh",)
        for choice in (plain, layer[:1]):
            if layer != choice:
                yield replace(case, activations=(*case.activations[:i], choice, *case.activations[i + 1 :]))
    for name in ("N", "D", "O", "P"):
        for smaller in (1, 2, getattr(case, name) // 2, getattr(case, name) - 1):
            if 0 < smaller < getattr(case, name):
                yield replace(case, **{name: smaller})
    for i, width in enumerate(case.hidden):
        for smaller in (1, 2, width // 2):
            if 0 < smaller < width:
                same = case.student in ("mlp", "tied", "residual")
                cut = (smaller,) * depth if same else (*case.hidden[:i], smaller, *case.hidden[i + 1 :])
                yield replace(case, hidden=cut)
    for name in ("views", "wrt"):
        parts = getattr(case, name) or ()
        yield from (replace(case, **{name: parts[:i] + parts[i + 1 :]}) for i in range(len(parts)) if len(parts) > 1)
    for i in (i for i, bias in enumerate(case.biases) if not bias):
        yield replace(case, biases=(*case.biases[:i], True, *case.biases[i + 1 :]))
    for name in ("value_loss", "derivative_loss"):
        if len(getattr(case, name)) > 1:
            yield replace(case, **{name: getattr(case, name)[:1]})
