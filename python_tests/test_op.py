"""The op: its registration, torch.compile, determinism, threads, instruction sets, working memory."""

from dataclasses import replace

import pytest
import torch
from problems import Shape, data, directions_of, step

import sobolev_kernels as sk
from sobolev_kernels.backends import cpu
from sobolev_kernels.call import begin
from sobolev_kernels.problem import DERIVATIVES, DERIVATIVES_GRADIENTS, LOSS, PER_SAMPLE, PER_SAMPLE_GRADIENTS
from sobolev_kernels.testing import assert_within_rule

SHAPE = Shape(7, 3, 8, 2, 2, 2, "small and odd")
ISAS = [name for name, _ in cpu._C.instruction_sets()]


@pytest.fixture(autouse=True)
def poison_outputs():
    """Not here: opcheck and torch.compile want the real allocator."""


@pytest.mark.parametrize("result", [LOSS, PER_SAMPLE, PER_SAMPLE_GRADIENTS, DERIVATIVES, DERIVATIVES_GRADIENTS])
def test_opcheck(result):
    numbers = data(SHAPE)
    x = numbers.x.requires_grad_()
    backward = result in (PER_SAMPLE_GRADIENTS, DERIVATIVES_GRADIENTS)
    forward = {PER_SAMPLE_GRADIENTS: PER_SAMPLE, DERIVATIVES_GRADIENTS: DERIVATIVES}.get(result, result)
    target = "none" if forward == DERIVATIVES else "dense"
    call = begin(numbers.student, x, sk.Directions.sphere(2), "cpu", result=forward, derivative_target=target)
    problem, values, derivative, weight = call.problem, numbers.y, numbers.jacobian, None
    if result == DERIVATIVES:
        values = derivative = None
    if backward:
        problem = replace(problem, result=result, gradients=True)
        x, weight = x.detach(), torch.ones(7) if forward == PER_SAMPLE else None
    if result == DERIVATIVES_GRADIENTS:
        problem, derivative = replace(problem, derivative_target="projected"), torch.randn(2, 7, 2)
    parameters = [p.detach().requires_grad_(not backward) for p in call.parameters]
    arguments = (
        x,
        parameters,
        None,
        call.seed,
        values,
        derivative,
        None,
        weight,
        None,
        [1.0, 0.5],
        problem.to_string(),
    )
    torch.library.opcheck(torch.ops.sobolev_kernels.mlp_sobolev, arguments)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile_fullgraph(reduction):
    numbers, directions = data(SHAPE), sk.Directions.sphere(2, seed=3)
    loss_fn = sk.SobolevLoss(directions=directions, reduction=reduction, backend="cpu")
    x = numbers.x.requires_grad_()

    def loss(x, y, jacobian):
        return (2.0 * loss_fn(numbers.student, x, sk.Targets(values=y, jacobian=jacobian))).sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True)):
        value = function(x, numbers.y, numbers.jacobian)
        results.append([value, *torch.autograd.grad(value, (x, *numbers.student.parameters()))])
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)


def test_compile_jvp_with_a_loss_of_ones_own():
    numbers, v = data(SHAPE), directions_of("given", SHAPE).values

    def loss(x, v):
        y, tangents = sk.jvp(numbers.student, x, v, backend="cpu")
        return y.sin().sum() + tangents.square().sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True)):
        value = function(numbers.x, v)
        results.append([value, *torch.autograd.grad(value, tuple(numbers.student.parameters()))])
    exact = numbers.to(torch.float64)
    y, tangents = sk.jvp(exact.student, exact.x, v.double(), backend="reference")
    value = y.sin().sum() + tangents.square().sum()
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


@pytest.mark.parametrize("teacher", [sk.MLP(3, 2, width=4), lambda x: torch.stack((x.prod(1), x.sum(1)), 1)])
def test_compile_with_a_teacher(teacher):
    numbers, directions = data(SHAPE), sk.Directions.sphere(2, seed=1)
    loss = lambda x: sk.sobolev_loss(numbers.student, x, sk.Targets(teacher=teacher), directions=directions)  # noqa: E731
    compiled = torch.compile(loss, fullgraph=True)(numbers.x)
    exact = step(numbers, directions, "cpu", targets=sk.Targets(teacher=teacher))["loss"]
    assert_within_rule("loss", compiled, exact.double())


def test_opcheck_of_the_directions():
    problem = begin(data(SHAPE).student, torch.zeros(7, 3), sk.Directions.sphere(2), "cpu", result=LOSS).problem
    seed = torch.tensor([5, 0])
    torch.library.opcheck(torch.ops.sobolev_kernels.draw_directions, (seed, 7, problem.to_string()))


LARGE = Shape(1003, 5, 40, 3, 3, 3, "many tiles, none of them whole at the end")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bitwise_the_same_on_every_run(threads):
    numbers, directions = data(LARGE), directions_of("sphere", LARGE)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first = step(numbers, directions, "cpu")
        for _ in range(5):
            again = step(numbers, directions, "cpu")
            assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    finally:
        torch.set_num_threads(before)


def test_threads_follow_torch():
    numbers = data(SHAPE)
    problem = begin(numbers.student, numbers.x, None, "cpu", result=LOSS).problem
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert dict(cpu.plan(problem, 1000).choices)["threads"] == threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", sk.ACTIVATIONS)
def test_every_instruction_set(activation, isa, dtype, monkeypatch):
    monkeypatch.setenv("SOBOLEV_ISA", isa)
    shape = Shape(70, 5, 21, 2, 3, 3, "partial tile, panel and block of rows in every set")
    numbers = data(shape, activation).to(dtype)
    v = directions_of("given", shape).values
    expected = step(numbers.to(torch.float64), sk.Directions.given(v.double()), "reference")
    baseline = step(numbers, sk.Directions.given(v.to(dtype)), "reference")
    got = step(numbers, sk.Directions.given(v.to(dtype)), "cpu")
    for name, tensor in got.items():
        assert_within_rule(name, tensor, expected[name], baseline[name])


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
    one = torch.ones(1, 1)
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
    assert sk.jvp(student, torch.tensor([[torch.nan]]), one, backend="cpu")[0].isnan().all()


@pytest.mark.parametrize("O", [1, 20], ids=["by gradients", "by tangents"])
@pytest.mark.parametrize("distribution", ["sphere", "given"])
def test_working_memory_does_not_grow_with_samples_or_directions(distribution, O):
    student = sk.MLP(8, O, width=64, depth=3)
    x = torch.zeros(1000, 8)

    def memory(P, N):
        v = sk.Directions.given(torch.zeros(P, 8)) if distribution == "given" else sk.Directions.sphere(P)
        problem = begin(student, x, v, "cpu", result=LOSS, derivative_target="dense").problem
        return cpu.working_memory(problem, N)

    assert memory(2, 1_000) == memory(16, 1_000) == memory(16, 1_000_000)
    assert memory(2, 1_000) > 0


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_both_sides_give_the_same_numbers(activation, reduction, monkeypatch):
    """More directions than outputs: projected gradients against tangents, each against the reference."""
    shape = Shape(70, 5, 21, 2, 3, 6, "3 outputs, 6 directions")
    numbers, directions = data(shape, activation, last="sin"), directions_of("sphere", shape)
    v = directions.tensor(numbers.x)
    expected = step(numbers.to(torch.float64), sk.Directions.given(v.double()), "reference", reduction=reduction)
    baseline = step(numbers, sk.Directions.given(v), "reference", reduction=reduction)
    for side in ("gradients", "tangents"):
        monkeypatch.setattr(cpu, "side", lambda _, side=side: side)
        got = step(numbers, directions, "cpu", reduction=reduction)
        for name, tensor in got.items():
            assert_within_rule(f"{side}: {name}", tensor, expected[name], baseline[name])
