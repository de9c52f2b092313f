"""`explain`: what it says of a chosen, a refused and a forced backend, with the work counted by hand."""

import re

import pytest
import torch
from torch import nn

import sobolev_kernels as sk
from sobolev_kernels import dispatch
from sobolev_kernels.backends import core, cpu

X = torch.zeros(10, 2)
STUDENT = sk.MLP(2, 1, width=16)
LAYER_NORM = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 1))
# Multiply-adds of one sample through 2 -> 16 -> 16 -> 1, and the numbers that are parameters.
MULTIPLIES = 2 * 16 + 16 * 16 + 16 * 1
PARAMETERS = MULTIPLIES + 16 + 16 + 1


def lines(*arguments, **options):
    """The lines by their first word; that of the chosen backend is "->"."""
    return dict(line.split(maxsplit=1) for line in sk.explain(*arguments, **options).splitlines())


def test_the_text_is_printed_and_returned(capsys):
    text = sk.explain(STUDENT, X)
    assert capsys.readouterr().out == text + "\n"
    # a notebook shows the value of a cell by this
    text._ipython_display_()
    assert isinstance(text, str) and capsys.readouterr().out == ""


def test_a_recognised_student():
    got = lines(STUDENT, X, sk.Directions.normal(3))
    assert got["student"] == "2 -> 16 -> 16 -> 1 (tanh, tanh, identity), float32 on cpu"
    assert got["directions"] == "3 x normal, N = 10"
    assert got["->"].startswith("cpu        fused, tile-local (")
    assert got["reference"] == "plain PyTorch streams"


def test_the_plan_is_the_one_that_is_run():
    plan = lines(STUDENT, X.repeat(1000, 1))["->"]
    threads, isa = torch.get_num_threads(), core.instruction_set()
    assert f"isa {isa}" in plan and f"threads {threads}" in plan


def test_parameters_of_activations_and_other_dtypes():
    student = sk.MLP(2, 1, width=3, depth=1, activation=("sin", 30.0), dtype=torch.bfloat16)
    got = lines(student, X.bfloat16(), sk.Directions.basis())
    assert got["student"] == "2 -> 3 -> 1 (sin(30), identity), bfloat16 computed in float32 on cpu"
    assert got["directions"] == "2 x basis, N = 10"


def test_an_unrecognised_student():
    got = lines(
        nn.Sequential(*LAYER_NORM[:-1], nn.Linear(LAYER_NORM[-1].in_features, 3)),
        X,
        sk.Directions.sphere(2, shared=True),
    )
    assert got["student"] == "Sequential of 2 features, float32 on cpu"
    assert got["directions"] == "2 x sphere, shared, N = 10"
    assert got["cpu"].startswith("refused: LayerNorm is not one of Linear and ")
    assert got["->"] == "streams    a value and its tangents by rules"
    assert got["operations"] == "linear 2, layer_norm 1"
    assert got["sides"] == "3 by tangents, 5.4 by gradients, in runs of a value or of a tangent"
    got = lines(LAYER_NORM, X, sk.Directions.sphere(4))
    assert got["streams"].endswith("(not taken: 1 gradient costs less than 4 tangents)")
    assert "work" not in got


def test_a_function():
    got = lines(lambda x: x, X)
    assert got["student"] == "function of 2 features, float32 on cpu"
    assert got["cpu"] == "refused: the student is a function, not a torch.nn.Sequential"


def test_tensors_elsewhere():
    got = lines(sk.MLP(2, 1, width=4, device="meta"), X.to("meta"))
    assert got["cpu"] == "refused: tensors are on meta"
    assert got["->"].startswith("reference")


def test_more_layers_than_the_core_takes():
    deep = sk.MLP(2, 1, width=1, depth=cpu.MOST_LAYERS)
    assert lines(deep, X)["cpu"] == f"refused: {cpu.MOST_LAYERS + 1} linear layers are more than {cpu.MOST_LAYERS}"


def test_a_missing_core(monkeypatch):
    monkeypatch.setattr(core, "_C", None)
    monkeypatch.setattr(core, "MISSING", "the compiled core is missing")
    got = lines(STUDENT, X)
    assert got["cpu"] == "refused: the compiled core is missing"
    assert got["->"].startswith("reference")


@pytest.mark.parametrize("forced", ["argument", "environment"])
def test_a_forced_backend(forced, monkeypatch):
    if forced == "environment":
        monkeypatch.setenv("SOBOLEV_BACKEND", "reference")
    got = lines(STUDENT, X, backend="reference" if forced == "argument" else None)
    assert got["->"] == "reference  plain PyTorch streams"
    assert got["cpu"].startswith("fused, tile-local (")


def test_a_forced_backend_that_refuses():
    with pytest.raises(NotImplementedError, match="got a refusal: LayerNorm is not one of Linear"):
        sk.explain(LAYER_NORM, X, backend="cpu")


V, U = torch.ones(3, 10, 2), sk.Cotangents.basis()
FUNCTIONS = {
    "jvp": (lambda s, x, **more: sk.jvp(s, x, V, **more), V, "3 x given, N = 10"),
    "vjp": (
        lambda s, x, **more: sk.vjp(s, x, sk.Cotangents.basis(), **more),
        sk.Cotangents.basis(),
        "1 x basis, N = 10",
    ),
    "jet": (lambda s, x, **more: sk.jet(s, x, V, **more), V, "3 x given, order 2, N = 10"),
    "laplacian": (lambda s, x, **more: sk.laplacian(s, x, **more), None, "2 x basis, order 2, summed, N = 10"),
    "hvp": (lambda s, x, **more: sk.hvp(s, x, V, V, **more), V, "6 x given, order 2, N = 10"),
}


@pytest.mark.filterwarnings("ignore:student. fft_rfft in it has no rule:sobolev_kernels.SobolevWarning")
@pytest.mark.parametrize("backend", [None, "reference", "streams"])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", ["MLP", "LayerNorm", "fft"])
def test_of_derivatives(kind, name, backend, monkeypatch):
    """What is said is what the function does: its backend, and its refusal."""
    student = {
        "MLP": STUDENT, "LayerNorm": nn.Sequential(LAYER_NORM[0], nn.LayerNorm(4), nn.Linear(4, 3)),
        "fft": lambda x: torch.fft.rfft(LAYER_NORM(x).expand(-1, 8).sin()).abs(),
    }[kind]  # fmt: skip
    call, vectors, said = FUNCTIONS[name]
    ran, choose = [], dispatch.choose
    monkeypatch.setattr(dispatch, "choose", lambda *a: ran.append(choose(*a)) or ran[-1])
    try:
        call(student, X, backend=backend)
    except NotImplementedError as error:
        with pytest.raises(type(error), match=re.escape(str(error))):
            sk.explain(student, X, vectors, of=name, backend=backend)
        return
    got = lines(student, X, vectors, of=name, backend=backend)
    if "mixed" in got:  # by the core's streams of any kind, which is no Problem of a step
        assert name == "hvp" and kind == "MLP" and len(ran) == 1 and got["mixed"].startswith("by the streams of v, w")
    assert got["call"] == name and ran[0] == ran[-1] and got["->"].startswith(ran[0].backend)
    assert kind != "MLP" or said == got["cotangents" if name == "vjp" else "directions"]
    if kind == "fft" and name == "jvp" and backend is None:
        assert got["streams"] == "refused: fft_rfft in it has no rule" and "linear 2" in got["operations"]


def test_inputs_of_any_shape():
    student, images = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)), torch.zeros(5, 1, 4, 4)
    for of, directions in (("loss", None), ("jvp", images[None])):
        got = lines(student, images, directions, of=of)
        assert got["student"] == "Sequential of 16 features, float32 on cpu" and "conv2d 1" in got["operations"]


def test_of_refusals():
    asked = lambda **more: sk.explain(STUDENT, X, of="jvp", **more)  # noqa: E731
    for more, error, said in (
        ({}, TypeError, "v: expected a tensor [P, N, D]"),
        ({"directions": V, "order": 2}, TypeError, "explain of jvp: takes no argument 'order'"),
        ({"directions": V, "derivative_target": "projected"}, ValueError, "derivative_target: expected none"),
        ({"directions": V[..., :1]}, ValueError, "directions: expected torch.float32 [P, 10, 2]"),
    ):
        with pytest.raises(error, match=re.escape(said)):
            asked(**more)
    names = "loss, jvp, vjp, jet, laplacian, hvp, partials, residual_loss"
    with pytest.raises(ValueError, match=re.escape(f"of: expected one of {names}, got jv")):
        sk.explain(STUDENT, X, V, of="jv")
    assert "order 1" not in sk.explain(STUDENT, X, V, of="jet", order=1, wrt=[1, 0])


def work(*arguments, **options):
    """FLOPs of the side taken, and bytes."""
    text = sk.explain(*arguments, **options)
    (flops, *_) = [line.split()[1] for line in text.splitlines() if line.startswith("work ")]
    return float(flops), float(lines(*arguments, **options)["memory"].removesuffix(" bytes at the least"))


def three_digits(number):
    return float(f"{number:.3g}")


@pytest.mark.parametrize("P", [2, 5])
def test_work_of_a_step_counted_by_hand(P):
    """Two FLOP a multiply-add, thrice for both backward products, for the values and for the one gradient."""
    flops, moved = work(STUDENT, X, sk.Directions.sphere(P))
    assert flops == three_digits(2 * 3 * (1 + 1) * 10 * MULTIPLIES)
    # x [10, 2], values [10, 1], jacobian [10, 1, 2] in; parameters in and their gradients out; 4 bytes each
    assert moved == three_digits(4 * (20 + 10 + 20 + 2 * PARAMETERS))


def test_work_with_more_outputs_than_directions():
    student = sk.MLP(2, 3, width=16, depth=0, bias=False)
    flops, moved = work(student, X, sk.Directions.sphere(2))
    assert flops == three_digits(2 * 3 * (1 + 2) * 10 * (2 * 3))
    assert moved == three_digits(4 * (20 + 30 + 60 + 2 * 6))


def test_work_without_gradients():
    with torch.no_grad():
        flops, moved = work(STUDENT, X)
    assert flops == three_digits(2 * (1 + 1) * 10 * MULTIPLIES)
    assert moved == three_digits(4 * (20 + 10 + 20 + PARAMETERS))


def test_work_with_what_else_must_move():
    x = X.double().requires_grad_()
    student = sk.MLP(2, 1, width=16, dtype=torch.float64)
    given = sk.Directions.given(torch.zeros(4, 10, 2, dtype=torch.float64))
    flops, moved = work(student, x, given, derivative_target="projected")
    assert flops == three_digits(2 * 3 * (1 + 1) * 10 * MULTIPLIES)
    # x in and its gradient out, values [10, 1], directions [4, 10, 2], tangents [4, 10, 1]; 8 bytes each
    assert moved == three_digits(8 * (2 * 20 + 10 + 80 + 40 + 2 * PARAMETERS))


def test_work_of_order_two():
    flops, moved = work(STUDENT, X, sk.Directions.sphere(3), order=2)
    assert flops == three_digits(2 * 3 * (1 + 2 * 3) * 10 * MULTIPLIES)
    # and the Hessian [10, 1, 2, 2]
    assert moved == three_digits(4 * (20 + 10 + 20 + 40 + 2 * PARAMETERS))
    _, moved = work(STUDENT, X, sk.Directions.sphere(3), order=2, derivative_target="projected")
    # or tangents and second derivatives [3, 10, 1]
    assert moved == three_digits(4 * (20 + 10 + 30 + 30 + 2 * PARAMETERS))


def test_work_of_cotangents():
    student = sk.MLP(2, 3, width=16, depth=0, bias=False)
    given = sk.Cotangents.given(torch.zeros(4, 10, 3))
    flops, moved = work(student, X, cotangents=given, derivative_target="projected")
    assert flops == three_digits(2 * 3 * (1 + 4) * 10 * (2 * 3))
    # x [10, 2], values [10, 3], cotangents [4, 10, 3], their VJPs [4, 10, 2], the weight and its gradient
    assert moved == three_digits(4 * (20 + 30 + 120 + 80 + 2 * 6))


def test_bytes_of_a_collapsed_output(monkeypatch):
    """A Laplacian writes one number for each output, however many directions it sums over."""
    student, x = sk.MLP(4, 3, width=16, depth=0, bias=False), torch.zeros(10, 4)
    problems, run = [], cpu.run
    monkeypatch.setattr(cpu, "run", lambda problem, *rest: problems.append(problem) or run(problem, *rest))
    sk.laplacian(student, x)[1].sum().backward()
    # x [10, 4], values and Laplacian [10, 3] and the weight; back, cotangents in their places and the weight's gradient
    assert problems[0].bytes(10) == 4 * (40 + 2 * 30 + 12)
    assert problems[1].bytes(10) == 4 * (40 + 2 * 30 + 2 * 12)


def test_work_of_some_columns():
    student, x = sk.MLP(4, 3, width=16, depth=0, bias=False), torch.zeros(10, 4)
    flops, moved = work(student, x, derivatives="exact", wrt=[3, 0])
    # the two columns, which are fewer than the three rows
    assert flops == three_digits(2 * 3 * (1 + 2) * 10 * (4 * 3))
    # x [10, 4], values [10, 3], jacobian [10, 3, 2], the weight and its gradient
    assert moved == three_digits(4 * (40 + 30 + 60 + 2 * 12))


@pytest.mark.parametrize(
    ("O", "taken", "other", "projections"),
    [
        (1, "1 gradient", "4 tangents", "cotangents  1 x basis"),
        (3, "3 gradients", "4 tangents", "cotangents  3 x basis"),
        (4, "4 tangents", "4 gradients", "directions  4 x basis"),
        (6, "4 tangents", "6 gradients", "directions  4 x basis"),
    ],
)
def test_the_whole_jacobian_from_the_cheaper_side(O, taken, other, projections):
    text = sk.explain(sk.MLP(4, O, width=16), torch.zeros(10, 4), derivatives="exact")
    first, second = [line for line in text.splitlines() if line.startswith("work ")]
    assert f"by {taken} beside the values" in first
    assert "(instead of " in second and f"by {other} beside the values)" in second
    assert f"{projections}, N = 10\n" in text
    assert f"(side {taken.split()[1].removesuffix('s')}s, " in text


def test_one_side_alone():
    """Cotangents are gradients, and order 2 goes along directions: there is nothing to say of another side."""
    student, x = sk.MLP(4, 3, width=16), torch.zeros(10, 4)
    for options, taken in (({"cotangents": sk.Cotangents.sphere(2)}, "2 gradients"), ({"order": 2}, "2 tangents")):
        (line,) = [line for line in sk.explain(student, x, **options).splitlines() if line.startswith("work ")]
        assert f" by {taken} beside the values" in line


def test_cotangents_order_and_columns_are_named():
    student, x = sk.MLP(4, 3, width=16), torch.zeros(10, 4)
    assert lines(student, x, cotangents=sk.Cotangents.sphere(2))["cotangents"] == "2 x sphere, N = 10"
    assert lines(student, x, wrt=[2, 0])["directions"] == "1 x sphere, of 2 of 4 inputs, N = 10"
    assert lines(student, x, wrt=[3, 2, 1, 0])["directions"] == "1 x sphere, N = 10"
    assert lines(student, x, order=2)["directions"] == "1 x sphere, order 2, N = 10"
    # a student that is not recognised is not run to count its outputs, and the whole Jacobian goes by columns
    assert lines(LAYER_NORM, X, cotangents=sk.Cotangents.basis())["cotangents"] == "O x basis, N = 10"
    assert lines(LAYER_NORM, X, derivatives="exact")["directions"] == "2 x basis, N = 10"


CALLS = {
    "few directions": (6, {"directions": sk.Directions.sphere(2)}),
    "few outputs": (1, {"directions": sk.Directions.sphere(2)}),
    "cotangents": (6, {"cotangents": sk.Cotangents.normal(2)}),
    "exact by rows": (1, {"derivatives": "exact"}),
    "exact by columns": (6, {"derivatives": "exact"}),
    "order 2": (1, {"directions": sk.Directions.sphere(2), "order": 2}),
    "columns": (1, {"derivatives": "exact", "wrt": [2, 0]}),
    "per sample": (1, {"directions": sk.Directions.sphere(2), "reduction": "none"}),
    "other losses": (6, {"value_loss": "relative_mse", "derivative_loss": "cosine", "reduction": "sum"}),
    "terms of weight 0": (1, {"weights": (1, 0), "return_terms": True}),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_is_said_is_what_is_done(call, monkeypatch):
    """The very Problem of the call, as the backend gets it, has the plan and the counts that were printed."""
    O, options = CALLS[call]
    student, x = sk.MLP(4, O, width=16), torch.zeros(10, 4)
    got = lines(student, x, derivative_target="projected", **options)
    problems, run = [], cpu.run
    monkeypatch.setattr(cpu, "run", lambda problem, *rest: problems.append(problem) or run(problem, *rest))
    teacher = lambda t: torch.sin(t).sum(1, keepdim=True).expand(-1, O)  # noqa: E731
    sk.sobolev_loss(student, x, sk.Targets(teacher=teacher), **options)
    (problem,) = problems
    assert got["->"] == f"cpu        {cpu.plan(problem, 10)}"
    assert got["memory"] == f"{problem.bytes(10):.3g} bytes at the least"
    assert got[problem.projection].startswith(f"{problem.P} x {problem.distribution}, ")
    side = dict(cpu.plan(problem, 10).choices)["side"]
    text = sk.explain(student, x, derivative_target="projected", **options)
    assert re.search(r"^work +[^(].* \d+ (\w+?)s? beside", text, re.MULTILINE)[1] + "s" == side


def test_the_problem_that_is_explained_is_the_one_of_the_call(monkeypatch):
    problems, plan = [], cpu.plan
    monkeypatch.setattr(cpu, "plan", lambda problem, N: problems.append(problem) or plan(problem, N))
    student, targets = (
        sk.MLP(2, 3, width=16),
        sk.Targets(teacher=lambda t: torch.sin(t).sum(1, keepdim=True).expand(-1, 3)),
    )
    for options in (
        {"value_loss": ("huber", 0.5), "derivative_loss": "cosine", "reduction": "sum"},
        {"reduction": "none", "precision": "bf16", "derivatives": "exact"},
        {"order": 2, "weights": (1, 0, 2)},
        {"order": 2, "weights": (1, 0, 0)},
        {"weights": (0, 0)},
    ):
        sk.explain(student, X, derivative_target="projected", **options)
        sk.sobolev_loss(student, X, targets, **options)
        assert len(set(problems)) == 1
        problems.clear()


def test_values_alone():
    got = lines(STUDENT, X, sk.Directions.sphere(3), order=2, weights=(1, 0, 0))
    assert got["directions"] == "none, N = 10"
    assert got["work"] == f"{2 * 3 * 10 * MULTIPLIES:.3g} FLOP in matrix products for the values"
    assert got["memory"] == f"{4 * (20 + 10 + 2 * PARAMETERS):.3g} bytes at the least"


def test_the_backward_of_a_loss_for_each_sample():
    text = sk.explain(STUDENT, X, sk.Directions.sphere(1), reduction="none")
    forward = f"{2 * (1 + 1) * 10 * MULTIPLIES:.3g}"
    assert f"{forward} FLOP in matrix products by 1 tangent beside the values, and thrice that in a backward" in text


def test_the_side_is_that_of_the_backend():
    """The planner's, where the backend asks it; the reference takes a tangent for each direction."""
    works = {backend: lines(STUDENT, X, sk.Directions.sphere(4), backend=backend) for backend in ("cpu", "reference")}
    text = sk.explain(STUDENT, X, sk.Directions.sphere(4), backend="reference")
    assert "by 4 tangents beside the values" in text and "instead of" not in text
    assert "side" not in works["reference"]["->"] and "side gradients" in works["cpu"]["->"]


def test_order_two_of_a_flat_activation_is_refused():
    with pytest.raises(sk.NotProvided, match="order: expected 1 with relu"):
        sk.explain(sk.MLP(2, 1, activation="relu"), X, order=2)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"cotangents": sk.Directions.sphere()}, TypeError, "cotangents: expected a sobolev_kernels.Cotangents"),
        ({"derivatives": "all"}, ValueError, "derivatives: expected None or 'exact', got all"),
        ({"wrt": [2]}, ValueError, "wrt: expected columns of the inputs, whole numbers from 0 to 1"),
        ({"wrt": 0}, ValueError, "wrt: expected columns of the inputs, a sequence"),
        ({"order": 5}, ValueError, "order: expected a whole number"),
        ({"reduction": "avg"}, ValueError, "reduction: expected one of mean, sum, none, got avg"),
        ({"value_loss": "mae"}, ValueError, "value_loss: unknown name 'mae'"),
        ({"derivative_loss": ("huber", 0)}, ValueError, "derivative_loss: expected finite parameters > 0"),
        ({"weights": (1, 2, 3)}, ValueError, "weights: expected two numbers"),
        ({"weights": "differential-ml", "order": 2}, ValueError, "weights: expected numbers, since"),
        ({"precision": "fp8"}, ValueError, "precision: expected None or one of ieee"),
        ({"derivatives": "exact", "order": 2}, ValueError, "order: expected 1 with cotangents or exact derivatives"),
        (
            {"derivatives": "exact", "cotangents": sk.Cotangents.basis()},
            ValueError,
            "one of directions, cotangents and",
        ),
    ],
)
def test_bad_arguments(options, error, said):
    with pytest.raises(error, match=said):
        sk.explain(STUDENT, X, **options)


def test_no_random_number_is_drawn():
    before = torch.get_rng_state()
    sk.explain(STUDENT, X, sk.Directions.sphere(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_target():
    with pytest.raises(ValueError, match="derivative_target: expected one of dense, projected, got values"):
        sk.explain(STUDENT, X, derivative_target="values")


def test_inputs_of_any_shape_are_no_matter_of_the_student():
    """He is called by his own class, also where a head is behind him."""
    student = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Flatten(), nn.Linear(9, 2))
    for function, name in ((student, "Sequential"), (lambda x: student(x), "function")):
        for head in (None, torch.sin):
            text = sk.explain(function, torch.zeros(4, 2, 3), head=head)
            assert f"{name} is not one of Linear" in text and "Rows" not in text


def test_a_loss_that_is_made_of_derivatives():
    """Given directions that a dense target is projected on, and that ask for a gradient."""
    student, x = sk.MLP(3, 2, width=4), torch.zeros(4, 3)
    for target, said in (("dense", True), ("projected", False)):
        for asks in (True, False):
            v = sk.Directions.given(torch.ones(1, 4, 3, requires_grad=asks))
            text = sk.explain(student, x, v, derivative_target=target, backend="cpu")
            assert ("from fused derivatives" in text) == (said and asks)


def test_named_partials(capsys):
    x, names = torch.zeros(8, 2), ["u", "u_xx + u_yy"]
    text = sk.explain(sk.MLP(2, 1, width=16), x, of="partials", names=names, fields="x y -> u")
    assert capsys.readouterr().out == text + "\n"
    assert "streams     3 beside the value, 4 without the sums\n" in text
    assert "\n-> cpu        one pass" in text or "the compiled core" in text
    around = sk.Transformed(sk.MLP(2, 1, width=16), inputs=torch.sin, outputs=lambda x, y: x[:, :1] * y)
    text = sk.explain(around, x, of="partials", names=names, fields="x y -> u")
    assert "inputs      transformed: all 4 streams of 2 features" in text and "outputs     transformed" in text
    text = sk.explain(lambda x: x[:, :1], x, of="partials", names="u_x", fields="x y -> u")
    assert "\n-> reference  autograd of autograd" in text


def test_residual_losses():
    heat = sk.Residual(lambda p: p.u_t - p.u_xx, "x t -> u", name="heat")
    text = sk.explain(sk.MLP(2, 1, width=16), torch.zeros(8, 2), of="residual_loss", residual=[heat, heat.diff("x")])
    assert "order       3\n" in text and "heat_x      u_xt - u_xxx\n" in text
    assert "-> cpu        one pass of the core for the loss and all gradients" in text
    by_two_calls = sk.Residual(lambda p: p.u_t - p.u.atan(), "x t -> u")
    text = sk.explain(sk.MLP(2, 1, width=16), torch.zeros(8, 2), of="residual_loss", residual=by_two_calls)
    assert "-> cpu        one pass of the core for the results, and one for all gradients" in text


@pytest.mark.parametrize(
    "said, more",
    [
        ("names: expected", {"of": "partials", "fields": "x t -> u"}),
        ("directions: expected none of partials", {"of": "partials", "directions": 3}),
        ("order: expected no such keyword of partials", {"of": "partials", "order": 2}),
        ("residual: expected a sobolev_kernels.Residual", {"of": "residual_loss"}),
        ("names: expected none but of", {"names": "u"}),
        ("order 2", {"of": "partials", "names": "u_xx", "fields": "x t -> u", "activation": "relu"}),
    ],
)
def test_what_is_wrong_with_named_partials(said, more):
    student = sk.MLP(2, 1, width=4, activation=more.pop("activation", "tanh"))
    with pytest.raises((ValueError, TypeError, NotImplementedError), match=said):
        sk.explain(student, torch.zeros(8, 2), **more)
