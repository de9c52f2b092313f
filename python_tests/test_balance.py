"""How the parts of a loss are balanced: coupled losses, weights of samples and outputs, units of the inputs, and the
weights of differential machine learning. Against the reference, and against formulas written out here."""

import numpy as np
import pytest
import torch

import sobolev_kernels as sk
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import TERMS, Comparison, compare, computed_from, ramp, step
from sobolev_kernels.testing.problems import (
    DTYPES,
    SHAPES,
    SMALL,
    TINY,
    Shape,
    cotangents_of,
    data,
    directions_of,
    targets_of,
    threads,
)


@pytest.fixture(autouse=True)
def one_thread():
    with threads(1):
        yield


REDUCTIONS = ["mean", "sum", "none"]
# What the derivatives are projected on, the kinds of targets, and the settings.
MODES = {
    "by tangents": (lambda s: directions_of("normal", s, P=2), ("values", "jacobian"), {}),
    "by gradients": (lambda s: directions_of("normal", s, P=3), ("values", "jacobian"), {}),
    "tangents": (lambda s: directions_of("normal", s, P=2), ("values", "tangents"), {}),
    "cotangents": (lambda s: cotangents_of("normal", s, P=2), ("values", "jacobian"), {}),
    "vjps": (lambda s: cotangents_of("given", s, P=2), ("values", "vjps"), {}),
    "exact": (lambda s: None, ("values", "jacobian"), {"derivatives": "exact"}),
    "order 2": (lambda s: directions_of("normal", s, P=2), ("values", "jacobian", "hessian"), {"order": 2}),
    "order 2, seconds": (lambda s: directions_of("given", s, P=2), ("values", "tangents", "seconds"), {"order": 2}),
}
# The ways to the whole Jacobian.
WHOLE = [(None, {"derivatives": "exact"}), (sk.Directions.basis(), {}), (sk.Cotangents.basis(), {})]
each_mode = pytest.mark.parametrize("mode", MODES)
each_coupled_loss = pytest.mark.parametrize("loss", sk.COUPLED)
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def compare_mode(mode, numbers, shape, **settings):
    projections, targets, mode_settings = MODES[mode]
    with computed_from("gradients" if mode == "by gradients" else "tangents"):
        return compare(numbers, projections(shape), targets, **mode_settings, **settings)


# A cosine of one number is -1 or 1 whatever the student does, so shapes of one output cannot have it of values.
MANY_OUTPUTS = [shape for shape in SHAPES if shape.O > 1 and shape.D < 100]


@pytest.mark.parametrize("shape", MANY_OUTPUTS, ids=str)
@each_coupled_loss
@each_mode
def test_coupled_losses_of_every_shape(mode, loss, shape):
    other = next(name for name in sk.COUPLED if name != loss)
    for i, dtype in enumerate(DTYPES):
        numbers = data(shape, ("tanh", "silu")[i]).to(dtype)
        reduction = REDUCTIONS[(i + SHAPES.index(shape)) % 3]
        compare_mode(mode, numbers, shape, value_loss=other, derivative_loss=loss, reduction=reduction)


@each_reduction
@pytest.mark.parametrize(
    "losses",
    [
        {"value_loss": "relative_mse"},
        {"value_loss": "cosine"},
        {"derivative_loss": "relative_mse"},
        {"derivative_loss": "cosine"},
        {"value_loss": "huber", "derivative_loss": ("relative_mse", 0.5)},
        {"value_loss": ("cosine", 0.1), "derivative_loss": ("cosine", 2.0)},
        {"value_loss": ("relative_mse", 3.0), "derivative_loss": "cosine"},
    ],
    ids=lambda losses: " ".join(map(str, losses.values())),
)
@each_mode
def test_coupled_and_pointwise_losses_together(mode, losses, reduction):
    for dtype in DTYPES:
        compare_mode(mode, data(SMALL, "softplus", last="sin").to(dtype), SMALL, reduction=reduction, **losses)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.3, 2.5)], ids=str)
@each_coupled_loss
@each_mode
def test_coupled_losses_with_weights(mode, loss, weights):
    weights = (*weights, 0.7) if "order 2" in mode else weights
    compare_mode(mode, data(SMALL), SMALL, value_loss=loss, derivative_loss=loss, weights=weights)


@each_coupled_loss
@pytest.mark.parametrize("targets", [("teacher",), ("function",)], ids=str)
def test_coupled_losses_with_a_teacher(targets, loss):
    for projections, settings in (
        (directions_of("sphere", SMALL), {}),
        (cotangents_of("sphere", SMALL), {}),
        (None, {"derivatives": "exact"}),
        (directions_of("sphere", SMALL), {"order": 2}),
        (sk.Directions.normal(2, seed=1), {"wrt": [2, 0]}),
        (sk.Directions.normal(2, seed=1), {"wrt": [1], "order": 2}),
    ):
        compare(data(SMALL), projections, targets, value_loss=loss, derivative_loss=loss, **settings)


def relative_mse(a, t, eps=1e-8):
    return (a - t).square().sum(1) / (t.square().sum(1) + eps)


def cosine(a, t, eps=1e-12):
    return 1 - (a * t).sum(1) / (a.square().sum(1) * t.square().sum(1) + eps).sqrt()


def rows(*terms):
    """All the numbers of each sample's prediction and target, [N, …], in one row."""
    return [term.flatten(1) for term in terms]


def jacobian_of(function, x):
    """[N, O, D], differentiable. (Not by torch.func: it crashes within a dispatch mode, as that of the rule.)"""
    rows = function(x).unbind(1)
    return torch.stack([torch.autograd.grad(row.sum(), x, create_graph=True)[0] for row in rows], 1)


def hessian_of(function, x):
    """[N, O, D, D], differentiable."""
    return torch.stack([jacobian_of(lambda x, o=o: jacobian_of(function, x)[:, o], x) for o in range(SMALL.O)], 1)


def reduced(term, reduction):
    return {"mean": term.mean(), "sum": term.sum(), "none": term}[reduction]


def assert_step(got, terms, weights, numbers):
    """Loss, terms and gradients of a step against those of a loss written out, a function that returns its terms."""
    names = [f"d{name}" for name, _ in numbers.student.named_parameters()]

    def again():
        parts = terms()
        loss = sum(w * term for w, term in zip(weights, parts, strict=True))
        derivatives = torch.autograd.grad((loss * ramp(loss)).sum(), (numbers.x, *numbers.student.parameters()))
        return dict(zip(["loss", "dx", *names, *TERMS], [loss, *derivatives, *parts], strict=False))

    Comparison(got, again(), again=again).check()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("loss", [relative_mse, cosine], ids=lambda loss: loss.__name__)
def test_coupled_losses_are_those_of_the_whole_derivatives_of_a_sample(loss, backend):
    """Written out: of a sample's values, of its whole Jacobian, of its D²m[v_p, v_p] for all p."""
    numbers = data(SMALL, "tanh").to(torch.float64)
    student, x = numbers.student, numbers.x.requires_grad_()
    name = loss.__name__
    losses = {"value_loss": name, "derivative_loss": name, "reduction": "none"}

    def exact():
        return loss(*rows(student(x), numbers.y)), loss(*rows(jacobian_of(student, x), numbers.jacobian))

    got = step(numbers, None, backend, derivatives="exact", **losses)
    assert_step(got, exact, (1.0, 1.0), numbers)

    v = directions_of("given", SMALL).values.double()

    def along():
        jacobian, curvature = jacobian_of(student, x), hessian_of(student, x)
        pairs = [
            [torch.einsum("nod,pnd->npo", j, v) for j in (jacobian, numbers.jacobian)],
            [torch.einsum("node,pnd,pne->npo", h, v, v) for h in (curvature, numbers.hessian)],
        ]
        return loss(*rows(student(x), numbers.y)), *(loss(*rows(*pair)) for pair in pairs)

    targets, weights = targets_of(numbers, ("values", "jacobian", "hessian")), (0.5, 2.0, 1.5)
    got = step(numbers, sk.Directions.given(v), backend, targets=targets, order=2, weights=weights, **losses)
    assert_step(got, along, weights, numbers)


def test_targets_of_zero_are_divided_by_eps():
    numbers = data(SMALL).to(torch.float64)
    targets = sk.Targets(values=torch.zeros_like(numbers.y), jacobian=torch.zeros_like(numbers.jacobian))
    settings = {"targets": targets, "reduction": "none"}
    for backend in ("cpu", "reference"):
        squares = step(numbers, None, backend, derivatives="exact", **settings)
        relative = ("relative_mse", 0.25)
        got = step(
            numbers, None, backend, derivatives="exact", value_loss=relative, derivative_loss=relative, **settings
        )
        assert_within_rule("value", got["value"], squares["value"] * SMALL.O / 0.25)
        assert_within_rule("derivative", got["derivative"], squares["derivative"] * SMALL.O * SMALL.D / 0.25)
        got = step(
            numbers, None, backend, derivatives="exact", value_loss="cosine", derivative_loss="cosine", **settings
        )
        assert torch.equal(got["value"], torch.ones(SMALL.N, dtype=torch.float64))
        assert all(tensor.isfinite().all() for tensor in got.values())


def test_gradcheck_of_coupled_losses():
    for mode, (projections, targets, mode_settings) in MODES.items():
        for loss in sk.COUPLED:
            numbers = data(TINY).to(torch.float64)
            made = projections(TINY)
            if made is not None and made.values is not None:
                made = type(made).given(made.values.double())
            settings = {
                **mode_settings,
                "targets": targets_of(numbers, targets, 2),
                "value_loss": loss,
                "derivative_loss": loss,
            }
            settings["cotangents" if isinstance(made, sk.Cotangents) else "directions"] = made

            def function(x, *_, numbers=numbers, settings=settings):
                return sk.sobolev_loss(numbers.student, x, backend="cpu", **settings)

            inputs = (numbers.x.requires_grad_(), *numbers.student.parameters())
            assert torch.autograd.gradcheck(function, inputs), (mode, loss)


# Weights of samples and outputs. Mixed outputs, those of cotangents, have none of their mode_settings.
SAMPLE_WEIGHT = 2 * torch.rand(SMALL.N, generator=torch.Generator().manual_seed(1))
OUTPUT_WEIGHT = torch.tensor([0.25, 1.75])
SOME_SAMPLES, SOME_OUTPUTS = SAMPLE_WEIGHT * (SAMPLE_WEIGHT > 1), torch.tensor([0.0, 2.0])
WEIGHTS = {
    "samples": {"sample_weight": SAMPLE_WEIGHT},
    "outputs": {"output_weight": OUTPUT_WEIGHT},
    "both": {"sample_weight": SAMPLE_WEIGHT, "output_weight": OUTPUT_WEIGHT},
    "some of them zero": {"sample_weight": SOME_SAMPLES, "output_weight": SOME_OUTPUTS},
}
MIXED = ("cotangents", "vjps")
WEIGHED = [(mode, name) for mode in MODES for name in WEIGHTS if mode not in MIXED or name == "samples"]
LOSSES = [("mse", "l1"), ("huber", "log_cosh"), ("relative_mse", "cosine"), ("cosine", "relative_mse")]


@each_reduction
@pytest.mark.parametrize("mode, name", WEIGHED)
def test_sample_and_output_weights(mode, name, reduction):
    for i, (value_loss, derivative_loss) in enumerate(LOSSES):
        numbers = data(SMALL, "silu").to(DTYPES[i % 2])
        losses = {"value_loss": value_loss, "derivative_loss": derivative_loss}
        if name == "some of them zero":
            losses = {"value_loss": "huber", "derivative_loss": "mse"}  # a cosine of one output is no function
        compare_mode(mode, numbers, SMALL, reduction=reduction, **WEIGHTS[name], **losses)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@each_reduction
def test_weights_written_out(reduction, backend):
    """They multiply each residual's loss; the mean stays that over all residuals and all samples."""
    numbers = data(SMALL, "tanh").to(torch.float64)
    student, x = numbers.student, numbers.x.requires_grad_()
    samples, outputs = SAMPLE_WEIGHT.double(), OUTPUT_WEIGHT.double()

    def terms():
        residuals = [student(x) - numbers.y, (jacobian_of(student, x) - numbers.jacobian).mT]  # [N, …, O]
        return [reduced(samples * (outputs * r.square()).flatten(1).mean(1), reduction) for r in residuals]

    settings = {"weights": (0.5, 1.5), "reduction": reduction, "sample_weight": samples, "output_weight": outputs}
    for projections, mode_settings in WHOLE:
        got = step(numbers, projections, backend, **settings, **mode_settings)
        assert_step(got, terms, (0.5, 1.5), numbers)


@each_mode
def test_a_weight_of_zero_drops_the_sample(mode):
    """It costs the batch its place in the mean, and nothing that its targets say is seen."""
    projections, targets, mode_settings = MODES[mode]
    numbers = data(SMALL).to(torch.float64)
    made, keep = projections(SMALL), torch.arange(SMALL.N) % 3 > 0
    if made is not None and made.values is not None:
        made = type(made).given(made.values.double())
    wanted = targets_of(numbers, targets, 2)
    expected = step(numbers, made, "cpu", targets=wanted, sample_weight=keep.double(), **mode_settings)
    for tensor in (numbers.y, numbers.jacobian, *(t for t in (wanted.derivative, wanted.second) if t is not None)):
        projected = tensor is wanted.vjps or tensor is wanted.tangents or tensor is wanted.seconds
        tensor[(slice(None), ~keep) if projected else ~keep] += 100
    got = step(numbers, made, "cpu", targets=wanted, sample_weight=keep.double(), **mode_settings)
    for name, tensor in got.items():
        assert_within_rule(name, tensor, expected[name])


def test_a_value_for_every_sample_and_one_for_all():
    """Weights of one for each are no weights, and those of two double the loss; expanded tensors are as good."""
    numbers = data(SMALL).to(torch.float64)
    v = directions_of("sphere", SMALL)
    plain = step(numbers, v, "cpu")
    for value in (1.0, 2.0):
        ones = torch.full((), value, dtype=torch.float64)
        for weights in ({"sample_weight": ones.expand(SMALL.N)}, {"output_weight": ones.expand(SMALL.O)}):
            got = step(numbers, v, "cpu", **weights)
            for name, tensor in got.items():
                assert_within_rule(name, tensor, value * plain[name])


SCALE = torch.tensor([0.25, 3.0, 1.5])
SCALED = [mode for mode in MODES if mode not in ("tangents", "order 2, seconds")]


@each_reduction
@pytest.mark.parametrize("mode", SCALED)
def test_input_scale(mode, reduction):
    for i, (value_loss, derivative_loss) in enumerate(LOSSES):
        losses = {"value_loss": value_loss, "derivative_loss": derivative_loss, "reduction": reduction}
        compare_mode(mode, data(SMALL, "silu").to(DTYPES[i % 2]), SMALL, input_scale=SCALE, **losses)


@pytest.mark.parametrize("targets", [("values", "jacobian"), ("teacher",), ("function",)], ids=str)
@pytest.mark.parametrize("wrt", [[2, 0], [1], [2, 1, 0]], ids=str)
def test_input_scale_of_some_columns(wrt, targets):
    scale = SCALE[: len(wrt)]
    hessian = ("hessian",) if "jacobian" in targets else ()
    for projections, kinds, mode_settings in (
        (sk.Directions.normal(2, seed=1), targets, {}),
        (sk.Cotangents.normal(2, seed=1), targets, {}),
        (None, targets, {"derivatives": "exact"}),
        (sk.Directions.sphere(2, seed=1), targets + hessian, {"order": 2}),
    ):
        for dtype in DTYPES:
            compare(data(SMALL).to(dtype), projections, kinds, wrt=wrt, input_scale=scale, **mode_settings)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_input_scale_written_out(backend):
    """It multiplies the columns of both Jacobians, and both sides of both Hessians."""
    numbers = data(SMALL, "tanh").to(torch.float64)
    student, x, scale = numbers.student, numbers.x.requires_grad_(), SCALE.double()
    v = directions_of("given", SMALL).values.double()

    def exact():
        slopes = jacobian_of(student, x) - numbers.jacobian
        return (student(x) - numbers.y).square().mean(), (scale * slopes).square().mean()

    def along():
        slopes, bends = jacobian_of(student, x) - numbers.jacobian, hessian_of(student, x) - numbers.hessian
        once = torch.einsum("nod,pnd->pno", scale * slopes, v)
        twice = torch.einsum("node,pnd,pne->pno", scale * scale[:, None] * bends, v, v)
        return (student(x) - numbers.y).square().mean(), once.square().mean(), twice.square().mean()

    got = step(numbers, None, backend, derivatives="exact", input_scale=scale)
    assert_step(got, exact, (1.0, 1.0), numbers)

    targets = targets_of(numbers, ("values", "jacobian", "hessian"))
    got = step(numbers, sk.Directions.given(v), backend, targets=targets, order=2, input_scale=scale)
    assert_step(got, along, (1.0, 1.0, 1.0), numbers)


# Huge & Savine (2020): every derivative in units of its mode_settings size, and one value to W derivatives.
def differential_ml(student, x, y, jacobian, columns, reduction):
    residual = jacobian_of(student, x)[..., columns] - jacobian
    rms = jacobian.square().mean((0, 1)).sqrt()
    terms = (student(x) - y).square().mean(1), (residual / rms).square().mean((1, 2))
    return [reduced(term, reduction) for term in terms]


@each_reduction
@pytest.mark.parametrize("columns", [None, [0, 2], [1]], ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_differential_ml_written_out(backend, columns, reduction):
    numbers = data(SMALL, "softplus").to(torch.float64)
    numbers.jacobian = numbers.jacobian * torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)
    student, x, used = numbers.student, numbers.x.requires_grad_(), columns or [0, 1, 2]
    jacobian = numbers.jacobian[..., used]
    terms = lambda: differential_ml(student, x, numbers.y, jacobian, used, reduction)  # noqa: E731
    weights = (1 / (1 + len(used)), len(used) / (1 + len(used)))
    targets = sk.Targets(values=numbers.y, jacobian=jacobian)
    settings = {"targets": targets, "weights": "differential-ml", "wrt": columns, "reduction": reduction}
    for projections, mode_settings in WHOLE:
        assert_step(step(numbers, projections, backend, **settings, **mode_settings), terms, weights, numbers)


def test_differential_ml_in_every_mode():
    for shape in SHAPES:
        if shape.D * shape.O < 1000:
            for i, dtype in enumerate(DTYPES):
                numbers = data(shape, "silu").to(dtype)
                mode_settings = {"weights": "differential-ml", "reduction": REDUCTIONS[(i + SHAPES.index(shape)) % 3]}
                compare(numbers, None, derivatives="exact", **mode_settings)
                compare(numbers, directions_of("sphere", shape), **mode_settings)
                compare(numbers, cotangents_of("sphere", shape), derivative_loss="huber", **mode_settings)


def test_differential_ml_with_a_column_that_changes_nothing():
    """It takes the unit of the others, and a Jacobian of zeros is left as it is."""
    numbers = data(SMALL).to(torch.float64)
    numbers.jacobian[..., 1] = 0
    rms = numbers.jacobian.square().mean((0, 1)).sqrt()
    rms[1] = rms.square().mean().sqrt()
    expected = step(numbers, None, "cpu", derivatives="exact", weights=(0.25, 0.75), input_scale=1 / rms)
    got = step(numbers, None, "cpu", derivatives="exact", weights="differential-ml")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in got.items())
    numbers.jacobian = torch.zeros_like(numbers.jacobian)
    expected = step(numbers, None, "cpu", derivatives="exact", weights=(0.25, 0.75))
    for name, tensor in step(numbers, None, "cpu", derivatives="exact", weights="differential-ml").items():
        assert_within_rule(name, tensor, expected[name])


def test_differential_ml_of_one_output_by_rows():
    """A Jacobian [N, D] and values [N] are those of one output."""
    shape = Shape(45, 4, 9, 2, 1, 1, "one output")
    numbers = data(shape).to(torch.float64)
    flat = sk.Targets(values=numbers.y[:, 0], jacobian=numbers.jacobian[:, 0])
    expected = step(numbers, None, "cpu", derivatives="exact", weights="differential-ml")
    got = step(numbers, None, "cpu", targets=flat, derivatives="exact", weights="differential-ml")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in got.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", ["mse", *sk.COUPLED])
def test_weights_and_scales_of_half_precision(loss, dtype):
    settings = {"sample_weight": SAMPLE_WEIGHT, "output_weight": OUTPUT_WEIGHT, "input_scale": SCALE}
    results, half = [], data(SMALL).to(dtype)
    half.jacobian = (half.jacobian * 4).round() / 4  # times a scale of few digits it is still exact
    for numbers in (half, half.to(torch.float32)):
        converted = {name: tensor.to(dtype).to(numbers.x.dtype) for name, tensor in settings.items()}
        losses = {"value_loss": loss, "derivative_loss": loss}
        results.append(step(numbers, None, "cpu", derivatives="exact", **converted, **losses))
    for name, tensor in results[0].items():
        assert tensor.dtype == dtype
        assert_within_rule(name, tensor, results[1][name].double(), results[1][name].to(dtype))


@pytest.mark.parametrize(
    "size, settings",
    [(1.0, {"input_scale": SCALE / 3})] + [(size, {"weights": "differential-ml"}) for size in (1.0, 1e-4, 1e3)],
    ids=str,
)
def test_units_of_half_precision_are_computed_in_float32(size, settings):
    half = data(SMALL).to(torch.float16)
    half.jacobian = (size * data(SMALL).jacobian).half()
    results = []
    for numbers in (half, half.to(torch.float32)):
        converted = {n: v.half().to(numbers.x.dtype) if n == "input_scale" else v for n, v in settings.items()}
        results.append(step(numbers, None, "cpu", derivatives="exact", derivative_loss="l1", **converted))
    for name, tensor in results[0].items():
        assert tensor.isfinite().all() and torch.equal(tensor, results[1][name].half()), name


def test_the_module_takes_it_all():
    numbers = data(SMALL)
    targets = targets_of(numbers, ("values", "jacobian", "hessian"))
    every = {
        "directions": sk.Directions.sphere(2, seed=1), "order": 2, "wrt": [0, 1, 2], "weights": (0.5, 1.0, 2.0),
        "value_loss": "relative_mse", "derivative_loss": "cosine", "input_scale": SCALE, "output_weight": OUTPUT_WEIGHT,
        "reduction": "none", "return_terms": True,
    }  # fmt: skip
    for settings in (
        every,
        {"cotangents": sk.Cotangents.normal(2, seed=1), "weights": (0.5, 2.0)},
        {"derivatives": "exact", "weights": "differential-ml", "reduction": "sum"},
    ):
        module = sk.SobolevLoss(**settings)
        assert not list(module.parameters())
        got = module(numbers.student, numbers.x, targets, sample_weight=SAMPLE_WEIGHT)
        expected = sk.sobolev_loss(numbers.student, numbers.x, targets, sample_weight=SAMPLE_WEIGHT, **settings)
        pairs = [(got, expected)] if isinstance(got, torch.Tensor) else zip(got, expected, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    array = sk.SobolevLoss(weights=np.array([0.5, 2.0]))
    assert array.settings == sk.SobolevLoss(weights=(0.5, 2.0)).settings
    buffers = dict(sk.SobolevLoss(**every).double().named_buffers())
    assert set(buffers) == {"input_scale", "output_weight"}
    assert all(buffer.dtype == torch.float64 for buffer in buffers.values())
