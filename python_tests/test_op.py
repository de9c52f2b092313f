"""The op: its registration, torch.compile, determinism, threads, instruction sets, working memory."""

from dataclasses import replace
from itertools import product

import pytest
import torch

import sobolev_kernels as sk
from sobolev_kernels.backends import core, cpu
from sobolev_kernels.directions import given_of
from sobolev_kernels.enums import SIDES
from sobolev_kernels.math.table import Formula
from sobolev_kernels.prepare import prepare
from sobolev_kernels.problem import DERIVATIVES, DERIVATIVES_GRADIENTS, LOSS, PER_SAMPLE, PER_SAMPLE_GRADIENTS
from sobolev_kernels.request import Request
from sobolev_kernels.settings import Settings
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import compare, computed_from, forget, step
from sobolev_kernels.testing.problems import (
    CURVED,
    Shape,
    cotangents_of,
    data,
    directions_of,
    random,
    targets_of,
    threads,
)
from sobolev_kernels.testing.rule import ANOTHER_WAY

SHAPE = Shape(7, 3, 8, 2, 2, 2, "small and odd")
ISAS = [name for name, _ in core._C.instruction_sets()]


def prepared(student, x, projections=None, result=LOSS, kinds=("none", "none"), collapsed=False, **settings):
    """A call on the CPU backend, as a public function prepares it."""
    named = {} if projections is None else {projections.NAME: projections}
    named |= {"reduction": "none"} if result == PER_SAMPLE else {}
    asked = Settings(**named, **settings, backend="cpu", return_terms=True)
    return prepare(Request(result, student, x, asked, given_of(projections, None), None, kinds, collapsed=collapsed))


@pytest.fixture(autouse=True)
def poison_outputs():
    """Not here: opcheck and torch.compile want the real allocator, and dynamo a fresh cache."""
    torch._dynamo.reset()


# What is projected on, the kinds of targets of a loss, and the settings.
MODES = {
    "directions": (sk.Directions.sphere(2, seed=3), ("values", "jacobian"), {}),
    "cotangents": (sk.Cotangents.sphere(2, seed=3), ("values", "jacobian"), {}),
    "exact": (None, ("values", "jacobian"), {"derivatives": "exact"}),
    "order 2": (sk.Directions.sphere(2, seed=3), ("values", "jacobian", "hessian"), {"order": 2}),
    "cosine": (sk.Directions.sphere(2, seed=3), ("values", "jacobian"), {"derivative_loss": "cosine"}),
}
each_mode = pytest.mark.parametrize("mode", MODES)
COLLAPSED = "collapsed"
RESULTS = [LOSS, PER_SAMPLE, PER_SAMPLE_GRADIENTS, DERIVATIVES, DERIVATIVES_GRADIENTS]
OPCHECKED = [(result, mode) for result in RESULTS for mode in ("directions", "cotangents", "order 2")]
OPCHECKED += [(DERIVATIVES, COLLAPSED), (DERIVATIVES_GRADIENTS, COLLAPSED)]


@pytest.mark.parametrize("result, mode", OPCHECKED)
def test_opcheck(result, mode):
    numbers = data(SHAPE)
    N, D, O = SHAPE.N, SHAPE.D, SHAPE.O
    x = numbers.x.requires_grad_()
    backward = result in (PER_SAMPLE_GRADIENTS, DERIVATIVES_GRADIENTS)
    forward = {PER_SAMPLE_GRADIENTS: PER_SAMPLE, DERIVATIVES_GRADIENTS: DERIVATIVES}.get(result, result)
    order, collapsed = 2 if mode in ("order 2", COLLAPSED) else 1, mode == COLLAPSED
    target = "none" if forward == DERIVATIVES else "dense"
    projections = (sk.Cotangents if mode == "cotangents" else sk.Directions).sphere(2)
    how = {"result": forward, "order": order, "collapsed": collapsed, "kinds": (target, target)}
    call = prepared(numbers.student, x, projections, **how)
    problem, values, derivative, second, weight = call.problem, numbers.y, numbers.jacobian, numbers.hessian, None
    second = second if order == 2 else None
    if result == DERIVATIVES:
        values = derivative = second = None
    if backward:
        problem = replace(problem, result=result, gradients=True)
        x, weight = x.detach(), torch.ones(2, N) if forward == PER_SAMPLE else None
    if result == DERIVATIVES_GRADIENTS:
        derivative = None if collapsed else random(2, N, D if mode == "cotangents" else O)
        second = None if order == 1 else random(N, O) if collapsed else random(2, N, O)
        kinds = ["none" if tensor is None else "projected" for tensor in (derivative, second)]
        problem = replace(problem, derivative_target=kinds[0], second_target=kinds[1])
    parameters = [p.detach().requires_grad_(not backward) for p in call.student.parameters]
    each = None if forward == DERIVATIVES else random(2, N, D if mode == "cotangents" else O).abs()
    tensors = (x, parameters, None, torch.tensor([5, 0]), values, derivative, second, weight, None, each)
    arguments = (*tensors, [1.0, 0.5, 2.0][: 1 + order], problem.to_string())
    torch.library.opcheck(torch.ops.sobolev_kernels.mlp_sobolev, arguments)


# Inductor takes seconds to write code around an op that it does not look into: once for each form of the op.
COMPILED = [("directions", "mean", "inductor"), ("directions", "none", "inductor"), ("order 2", "mean", "inductor")]
COMPILED += [(mode, "none", "aot_eager") for mode in MODES]


@pytest.mark.parametrize("mode, reduction, compiler", COMPILED)
def test_compile_fullgraph(mode, reduction, compiler):
    numbers = data(SHAPE)
    projections, kinds, settings = MODES[mode]
    settings = settings | {"cotangents" if mode == "cotangents" else "directions": projections}
    loss_fn = sk.SobolevLoss(reduction=reduction, backend="cpu", **settings)
    x = numbers.x.requires_grad_()
    tensors = {name: getattr(numbers, "y" if name == "values" else name) for name in kinds}

    def loss(x, tensors):
        return (2.0 * loss_fn(numbers.student, x, sk.Targets(**tensors))).sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend=compiler)):
        value = function(x, tensors)
        results.append([value, *torch.autograd.grad(value, (x, *numbers.student.parameters()))])
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)


@pytest.mark.parametrize("compiler", ["eager, not compiled", "aot_eager"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("mode", MODES)
def test_learned_weights_of_terms(mode, reduction, compiler):
    """Gradients to weights, parameters and inputs through the terms and the loss, as by the reference."""
    numbers, (projections, kinds, settings) = data(SHAPE).to(torch.float64), MODES[mode]
    settings = settings | {"cotangents" if mode == "cotangents" else "directions": projections}
    targets = sk.Targets(**{name: getattr(numbers, "y" if name == "values" else name) for name in kinds})
    learned = torch.linspace(0.5, 1.5, len(kinds) + 1, dtype=torch.float64, requires_grad=True)
    x = numbers.x.requires_grad_()

    def loss(x, learned, backend):
        found = sk.sobolev_loss(
            numbers.student, x, targets, reduction=reduction, return_terms=True, backend=backend, **settings
        )
        parts = [term for term in found if term is not None]
        return sum((w * part * part.detach().exp()).sum() for w, part in zip(learned, parts, strict=True))

    results = []
    fused = loss if "eager," in compiler else torch.compile(loss, fullgraph=True, backend=compiler)
    for value in (fused(x, learned, "cpu"), loss(x, learned, "reference")):
        results.append(torch.autograd.grad(value, (x, learned, *numbers.student.parameters())))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, **ANOTHER_WAY)


DERIVATIVES_OF = {
    "jvp": [random(2, SHAPE.N, SHAPE.D)],
    "vjp": [random(2, SHAPE.N, SHAPE.O)],
    "jet": [random(2, SHAPE.N, SHAPE.D)],
    "laplacian": [],
    "hvp": [random(2, SHAPE.N, SHAPE.D), random(3, SHAPE.N, SHAPE.D)[1:]],
}


@pytest.mark.parametrize("name", DERIVATIVES_OF)
def test_compile_derivatives_with_a_loss_of_ones_own(name):
    compiler = "inductor" if name in ("jvp", "vjp", "laplacian") else "aot_eager"
    numbers, vectors = data(SHAPE), DERIVATIVES_OF[name]

    def loss(student, x, vectors, backend="cpu"):
        y, *derivatives = getattr(sk, name)(student, x, *vectors, backend=backend)
        return y.sin().sum() + sum(derivative.square().sum() for derivative in derivatives)

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend=compiler)):
        value = function(numbers.student, numbers.x, vectors)
        results.append([value, *torch.autograd.grad(value, tuple(numbers.student.parameters()))])
    exact = numbers.to(torch.float64)
    value = loss(exact.student, exact.x, [v.double() for v in vectors], "reference")
    expected = [value, *torch.autograd.grad(value, tuple(exact.student.parameters()))]
    for i, (eager, compiled, reference) in enumerate(zip(*results, expected, strict=True)):
        assert_within_rule(f"compiled {i}", compiled, reference, eager)


def test_compiled_random_directions_follow_the_generator():
    numbers = data(SHAPE)
    loss = torch.compile(
        lambda x: sk.sobolev_loss(
            numbers.student, x, sk.Targets(values=numbers.y, jacobian=numbers.jacobian),
            directions=sk.Directions.sphere(2), backend="cpu",
        ),
        fullgraph=True,
    )  # fmt: skip
    losses = {float(loss(numbers.x).detach()) for _ in range(4)}
    assert len(losses) == 4


FUNCTION = lambda x: torch.stack((x.prod(1), x.sum(1)), 1)  # noqa: E731
TEACHERS = [(sk.MLP(3, 2, width=4), mode) for mode in MODES] + [(FUNCTION, "directions")]


@pytest.mark.parametrize("teacher, mode", TEACHERS)
def test_compile_with_a_teacher(teacher, mode):
    numbers = data(SHAPE)
    projections, _, settings = MODES[mode]
    named = settings | {"cotangents" if mode == "cotangents" else "directions": projections}
    loss = lambda x: sk.sobolev_loss(numbers.student, x, sk.Targets(teacher=teacher), **named)  # noqa: E731
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(numbers.x)
    exact = step(numbers, projections, "cpu", targets=sk.Targets(teacher=teacher), **settings)["loss"]
    assert_within_rule("loss", compiled, exact.double())


def test_compile_with_columns_and_weights():
    numbers = data(SHAPE)
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian[..., [2, 0]])
    settings = {"derivatives": "exact", "wrt": (2, 0), "output_weight": torch.tensor([0.5, 2.0]), "backend": "cpu"}
    loss = lambda w: sk.sobolev_loss(numbers.student, numbers.x, targets, sample_weight=w, **settings)  # noqa: E731
    weight = torch.linspace(1, 2, SHAPE.N)
    assert torch.equal(torch.compile(loss, fullgraph=True, backend="aot_eager")(weight), loss(weight))


@pytest.mark.parametrize("settings", [{"input_scale": torch.ones(3)}, {"weights": "differential-ml"}], ids=str)
def test_compile_with_units(settings):
    numbers = data(SHAPE)
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    loss = lambda x: sk.sobolev_loss(numbers.student, x, targets, derivatives="exact", **settings)  # noqa: E731
    assert torch.equal(torch.compile(loss, fullgraph=True, backend="aot_eager")(numbers.x), loss(numbers.x))


def test_opcheck_of_the_directions():
    drawing = sk.Directions.sphere(2).drawing(3, torch.zeros(7, 3))
    seed = torch.tensor([5, 0])
    torch.library.opcheck(torch.ops.sobolev_kernels.draw_directions, (seed, 7, drawing.to_string()))


LARGE = Shape(1003, 5, 40, 3, 3, 3, "many tiles, none of them whole at the end")


@pytest.mark.parametrize("count", [1, 2, 3])
@each_mode
def test_bitwise_the_same_on_every_run(mode, count):
    numbers = data(LARGE)
    projections, kinds, settings = MODES[mode]
    settings = settings | {"targets": targets_of(numbers, kinds)}
    with threads(count):
        first = step(numbers, projections, "cpu", **settings)
        for _ in range(5):
            again = step(numbers, projections, "cpu", **settings)
            assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_threads_follow_torch():
    numbers = data(SHAPE)
    problem = prepared(numbers.student, numbers.x).problem
    for count in (1, 2):
        with threads(count):
            assert dict(cpu.plan(problem, 1000).choices)["threads"] == count
            assert dict(cpu.plan(problem, 2).choices)["threads"] == 1  # of which each would wait for the other


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", sk.ACTIVATIONS)
def test_every_instruction_set(activation, isa, dtype, monkeypatch):
    monkeypatch.setenv("SOBOLEV_ISA", isa)
    shape = Shape(70, 5, 21, 2, 3, 3, "partial tile, panel and block of rows in every set")
    numbers = data(shape, activation).to(dtype)
    for side in SIDES:
        with computed_from(side):
            compare(numbers, directions_of("given", shape))
    compare(numbers, cotangents_of("given", shape))
    compare(numbers, cotangents_of("sphere", shape))
    for loss in sk.COUPLED:
        compare(numbers, directions_of("given", shape), value_loss=loss, derivative_loss=loss)
    if activation in CURVED:
        for derivative_loss in ("mse", "cosine"):
            losses = {"derivative_loss": derivative_loss}
            compare(numbers, directions_of("given", shape), ("values", "jacobian", "hessian"), order=2, **losses)
        # collapsed, which only an output is
        outputs = [
            sk.laplacian(n.student, n.x, backend=backend)[1]
            for n, backend in ((numbers, "cpu"), (numbers.to(torch.float64), "reference"), (numbers, "reference"))
        ]
        assert_within_rule("laplacian", *outputs)


# The longest tile, the columns that go side by side, up to which ratio gradients are gathered, and up to which width
# weights are read where they lie
PLANS = {
    "one at a time": (16, 1, 0, 0),
    "two of three": (32, 64, 0, 1000),
    "all": (16, 1000, 0, 1000),
    "all, gathered": (64, 1000, 1000, 0),
    "all, gathered, in place": (64, 1000, 1000, 1000),
}


@pytest.mark.parametrize("how", PLANS)
def test_every_plan(how, monkeypatch):
    monkeypatch.setenv("SOBOLEV_ISA", ISAS[list(PLANS).index(how) % len(ISAS)])
    *tile, gathered, in_place = PLANS[how]
    monkeypatch.setattr(cpu, "TILES", ((float("inf"), *tile),))
    monkeypatch.setattr(cpu, "TOGETHER", 0)
    monkeypatch.setattr(cpu, "GATHERED", gathered)
    monkeypatch.setattr(cpu, "IN_PLACE", (in_place, 1000))
    monkeypatch.setattr(cpu, "_plan", cpu._plan.__wrapped__)
    shape = Shape(70, 35, 21, 2, 3, 3, "tiles of which the last is partial, and a gradient's strip that W ends in")
    numbers = data(shape)
    problem = prepared(numbers.student, numbers.x, directions_of("given", shape), kinds=("dense", "none")).problem
    with threads(2):
        choices = dict(cpu.plan(problem, shape.N).choices)
    assert choices.get("gather", False) == (gathered > 0) and choices.get("in_place", False) == (in_place > 0)
    compare(numbers, None, ("values",), weights=(1.0, 0.0))
    for loss in ("mse", "cosine"):
        compare(numbers, directions_of("given", shape), derivative_loss=loss)
        compare(numbers, cotangents_of("given", shape), derivative_loss=loss, wrt=range(4))
    compare(numbers, directions_of("orthonormal", shape), reduction="none", wrt=range(10))
    scalar = data(replace(shape, O=1))
    with computed_from("gradients"):
        compare(numbers, directions_of("sphere", shape))
        asked = prepared(scalar.student, scalar.x, directions_of("given", shape), kinds=("dense", "none")).problem
        with threads(2):  # one stream is all of them
            assert dict(cpu.plan(asked, shape.N).choices).get("gather", False) == (gathered > 0)
        for loss in ("mse", "relative_mse"):
            compare(scalar, directions_of("sphere", shape), derivative_loss=loss, wrt=range(10))
    compare(numbers, directions_of("given", shape), ("values", "tangents", "seconds"), order=2)
    vectors, double = random(3, 70, 35), numbers.to(torch.float64)
    jvp = sk.jvp(numbers.student, numbers.x, vectors)[1]
    assert_within_rule("jvp", jvp, sk.jvp(double.student, double.x, vectors.double(), backend="reference")[1])


# Of two dimensions: rows contiguous, columns contiguous, neither
STRIDES = (lambda a: a, lambda a: a.mT.contiguous().mT, lambda a: torch.stack([a, torch.full_like(a, 7)], -1)[..., 0])


@pytest.mark.parametrize("isa", ISAS)
def test_weights_and_jacobians_of_any_strides(isa, monkeypatch):
    monkeypatch.setenv("SOBOLEV_ISA", isa)
    monkeypatch.setattr(cpu, "_plan", cpu._plan.__wrapped__)
    shape = Shape(21, 35, 75, 2, 3, 3, "weights read where they lie or packed in parts, many directions of a Jacobian")
    for projections in (directions_of("given", shape), cotangents_of("given", shape)):
        results = []
        for strides, narrower in product(STRIDES, (1000, 0)):
            monkeypatch.setattr(cpu, "IN_PLACE", (narrower, 2))
            forget()
            numbers = data(shape)
            for parameter in numbers.student.parameters():
                if parameter.dim() == 2:
                    parameter.data = strides(parameter.data)
            results.append(compare(numbers, projections))
            of_jacobian = lambda n: sk.Targets(values=n.y, jacobian=strides(n.jacobian))  # noqa: B023, E731
            compare(numbers, projections, of_jacobian)
        for other in results[1:]:
            assert all(torch.equal(tensor, other[name]) for name, tensor in results[0].items())
    numbers = data(shape)
    for parameter in numbers.student.parameters():  # all rows the same
        parameter.data = parameter.data[:1].expand_as(parameter)
    compare(numbers, directions_of("given", shape))


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("SOBOLEV_ISA", "mmx")
    with pytest.raises(ValueError, match=r"instruction set 'mmx' is not available .* known: .*baseline"):
        step(data(SHAPE), directions_of("sphere", SHAPE), "cpu")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ["tanh", "sin", "gelu", "softplus", "elu", "sigmoid"])
def test_vector_functions_over_their_whole_range(activation, isa, monkeypatch):
    """Large, tiny and far arguments of the polynomials; and NaN stays NaN."""
    monkeypatch.setenv("SOBOLEV_ISA", isa)
    z = torch.cat([s * torch.logspace(-30, 4.3, 400) for s in (1.0, -1.0)] + [torch.linspace(-100, 100, 4001)])
    z = z[:, None]
    student = sk.MLP(1, 1, depth=0, last_activation=activation, bias=False)
    torch.nn.init.ones_(student[0].weight)
    one = torch.ones(1, len(z), 1)
    got = sk.jvp(student, z, one, backend="cpu")
    exact = sk.jvp(student.double(), z.double(), one.double(), backend="reference")
    plain = sk.jvp(student.float(), z, one, backend="reference")
    # relative to each magnitude: many short ranges instead of one whose largest number hides the others
    order = z.abs().flatten().argsort()
    for i in range(0, len(z), 100):
        part = order[i : i + 100]
        for name, k in (("y", 0), ("slope", 1)):
            at = f"{name} near {float(z[part[0]]):.1e}"
            assert_within_rule(at, *(streams[k].reshape(len(z))[part] for streams in (got, exact, plain)))
    assert sk.jvp(student, torch.tensor([[torch.nan]]), one[:, :1], backend="cpu")[0].isnan().all()


WORKING = {
    "directions": (sk.Directions, {"result": LOSS}),
    "cotangents": (sk.Cotangents, {"result": LOSS}),
    "order 2": (sk.Directions, {"result": LOSS, "order": 2}),
    "coupled": (sk.Directions, {"result": LOSS, "derivative_loss": Formula("cosine", (1e-12,))}),
    "jet": (sk.Directions, {"result": DERIVATIVES, "order": 2}),
    "vjp": (sk.Cotangents, {"result": DERIVATIVES}),
    "laplacian": (sk.Directions, {"result": DERIVATIVES, "order": 2, "collapsed": True}),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("distribution", ["sphere", "given"])
@pytest.mark.parametrize("kind, fields", WORKING.values(), ids=WORKING)
def test_working_memory_does_not_grow_with_samples_or_projections(kind, fields, distribution, side):
    student = sk.MLP(8, 4, width=64, depth=3)
    x = torch.zeros(1000, 8)

    def memory(P, N):
        v = kind.given(torch.zeros(P, 4 if kind is sk.Cotangents else 8)) if distribution == "given" else kind.sphere(P)
        kinds = ("none", "none") if fields["result"] == DERIVATIVES else ("dense", "dense")
        problem = prepared(student, x, v, kinds=kinds, **fields).problem
        if fields["result"] == DERIVATIVES:
            problem = replace(problem, result=DERIVATIVES_GRADIENTS, gradients=True)
        with computed_from(side):
            return cpu.working_memory(problem, N)

    most = cpu.SUMMED if "collapsed" in fields else cpu.APART if fields.get("order") == 2 else 8
    assert memory(most, 1_000) == memory(2 * most, 1_000) == memory(2 * most, 1_000_000)
    assert memory(2, 1_000) > 0


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_both_sides_give_the_same_numbers(activation, reduction):
    """Projected gradients against tangents, each against the reference."""
    shape = Shape(70, 5, 21, 2, 3, 6, "3 outputs, 6 directions")
    for side in SIDES:
        with computed_from(side):
            compare(data(shape, activation, last="sin"), directions_of("sphere", shape), reduction=reduction)
