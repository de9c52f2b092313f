"""Weights of residuals and missing labels: what has weight 0 is not there, whatever its target, on every backend.

Against a loss written out here from whole Jacobians by torch.func, and against the reference in float64.
"""

import copy

import pytest
import torch

import sobolev_kernels as sk
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import compare, computed_from, ramp, step
from sobolev_kernels.testing.problems import (
    DTYPES,
    Shape,
    as_dtype,
    cotangents_of,
    data,
    directions_of,
    random,
    targets_of,
    threads,
)
from sobolev_kernels.testing.rule import ANOTHER_WAY

# More outputs than inputs, and fewer: "exact" is by columns, and by rows.
TALL, WIDE = Shape(13, 2, 5, 1, 3, 2, "exact by columns"), Shape(19, 3, 7, 2, 2, 2, "exact by rows; a panel and more")
BACKENDS = ["cpu", "reference"]
REDUCTIONS = ["mean", "sum", "none"]
LOSSES = ["mse", "l1", "huber", "log_cosh", *sk.COUPLED]
NAN, INF = float("nan"), float("inf")

# What is projected on, of which targets, and the settings; the side that directions are projected from.
MODES = {
    "by tangents": (lambda s: directions_of("given", s, P=2), ("values", "jacobian"), {}),
    "by gradients": (lambda s: directions_of("given", s, P=3), ("values", "jacobian"), {}),
    "tangents": (lambda s: directions_of("given", s, P=2), ("values", "tangents"), {}),
    "columns": (lambda s: sk.Directions.basis(), ("values", "jacobian"), {}),
    "columns, unbiased": (lambda s: sk.Directions.basis(unbiased=True), ("values", "jacobian"), {}),
    "rows": (lambda s: sk.Cotangents.basis(), ("values", "jacobian"), {}),
    "exact": (lambda s: None, ("values", "jacobian"), {"derivatives": "exact"}),
    "cotangents": (lambda s: cotangents_of("given", s, P=2), ("values", "jacobian"), {}),
    "vjps": (lambda s: cotangents_of("given", s, P=2), ("values", "vjps"), {}),
    "order 2": (lambda s: directions_of("given", s, P=2), ("values", "jacobian", "hessian"), {"order": 2}),
    "order 2, columns": (lambda s: sk.Directions.basis(), ("values", "jacobian", "hessian"), {"order": 2}),
    "order 2, seconds": (lambda s: directions_of("given", s, P=2), ("values", "tangents", "seconds"), {"order": 2}),
}
BASIS, MIXED = ("columns", "columns, unbiased", "rows", "exact"), ("cotangents", "vjps")


def kinds_of(mode):
    """The weights that a mode takes."""
    kinds = {"sample": True, "derivative [N]": True, "mask": mode not in ("tangents", "order 2, seconds")}
    kinds |= dict.fromkeys(("output", "derivative [N, O]", "all"), mode not in MIXED)
    kinds["derivative [N, O, W]"] = mode in BASIS
    return [kind for kind, taken in kinds.items() if taken]


def weights_of(kind, shape, mode=""):
    """About a third of the numbers is 0; of what is no mask, the others are from 0.5 to 1.5."""

    def weight(*size):
        w = torch.rand(size, generator=torch.Generator().manual_seed(len(size)))
        return torch.where(w < 0.35, 0.0, 0.5 + w)

    N, O, W = shape.N, shape.O, shape.D
    each = {"derivative [N]": weight(N), "derivative [N, O]": weight(N, O), "derivative [N, O, W]": weight(N, O, W)}
    each["mask"] = weight(N, W) != 0
    output = torch.linspace(0, 1.5, O)
    if kind == "all":
        last = each["derivative [N, O, W]" if mode in BASIS else "derivative [N, O]"]
        return {"sample_weight": weight(N), "output_weight": output, "derivative_weight": last}
    if kind in each:
        return {"derivative_weight": each[kind]}
    return {"sample_weight": weight(N)} if kind == "sample" else {"output_weight": output}


WEIGHED = [(mode, kind) for mode in MODES for kind in kinds_of(mode)]
each_weight = pytest.mark.parametrize("mode, kind", WEIGHED, ids=[f"{mode}-{kind}" for mode, kind in WEIGHED])
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def one_thread():
    with threads(1):
        yield


def made(mode, shape, dtype):
    """Projections and settings of a mode."""
    projections, _, settings = MODES[mode]
    return as_dtype(projections(shape), dtype), settings


def run(mode, numbers, shape, targets, backend="cpu", **settings):
    projections, more = made(mode, shape, numbers.x.dtype)
    with computed_from("gradients" if mode == "by gradients" else "tangents"):
        return step(numbers, projections, backend, targets=targets, **more, **in_dtype_of(numbers, settings))


def in_dtype_of(numbers, settings):
    return {name: as_dtype(value, numbers.x.dtype) for name, value in settings.items()}


@each_weight
def test_against_the_reference(mode, kind):
    for i, shape in enumerate((TALL, WIDE)):
        for j, dtype in enumerate(DTYPES):
            loss = LOSSES[(WEIGHED.index((mode, kind)) + 2 * i + j) % len(LOSSES)]
            settings = {"derivative_loss": loss, "value_loss": LOSSES[i], "reduction": REDUCTIONS[(i + j) % 3]}
            projections, targets, more = MODES[mode]
            with computed_from("gradients" if mode == "by gradients" else "tangents"):
                weights = weights_of(kind, shape, mode)
                compare(data(shape, "silu").to(dtype), projections(shape), targets, **more, **settings, **weights)


UP, ALONG = sk.Cotangents.sphere(2, seed=1), sk.Directions.sphere(2, seed=1)
ALL_BUT_ONE = torch.arange(WIDE.N)[:, None] != 1
NOTHING = {
    "weights": (ALONG, {"derivative_weight": ALL_BUT_ONE.expand(-1, WIDE.O).float()}),
    "mask": (ALONG, {"derivative_weight": ALL_BUT_ONE.expand(-1, WIDE.D)}),
    "mask of cotangents": (UP, {"derivative_weight": ALL_BUT_ONE.expand(-1, WIDE.D)}),
    "outputs": (ALONG, {"output_weight": torch.zeros(WIDE.O)}),
}


@each_backend
@pytest.mark.parametrize("loss", sk.COUPLED)
@pytest.mark.parametrize("projections, weights", NOTHING.values(), ids=NOTHING)
def test_a_sample_without_a_number_that_counts_is_zero(projections, weights, loss, backend):
    """Of `cosine` too, which is 1 of a prediction that is 0."""
    numbers = data(WIDE, "tanh")
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    named = {projections.NAME: projections, "derivative_loss": loss, "value_loss": loss, "return_terms": True}
    terms = sk.sobolev_loss(numbers.student, numbers.x, targets, reduction="none", backend=backend, **named, **weights)
    assert terms.derivative[1] == 0 and (terms.value[1] == 0) == ("output_weight" in weights)
    assert (terms.derivative[0] == 0) == ("output_weight" in weights)
    gradients = torch.autograd.grad(terms.derivative[1], tuple(numbers.student.parameters()))
    assert not any(gradient.any() for gradient in gradients)


# ---- Written out ----


def derivatives_of(student, x):
    """Values [N, O], Jacobians [N, O, W], Hessians [N, O, W, W], by torch.func, differentiable."""
    one = lambda x: student(x[None])[0]  # noqa: E731
    jacobian = torch.func.jacrev(one)
    return student(x), torch.func.vmap(jacobian)(x), torch.func.vmap(torch.func.jacfwd(jacobian))(x)


POINTWISE = {
    "mse": torch.square,
    "l1": torch.abs,
    "huber": lambda r: torch.nn.functional.huber_loss(r, torch.zeros_like(r), reduction="none"),
    "log_cosh": lambda r: torch.log(torch.cosh(r)),
}


def term_of(name, a, t, w, sample):
    """Of each sample, from predictions, targets and weights [N, …]; what does not count is taken out by hand."""
    w = w.expand_as(a)
    a, t = (torch.where((w == 0) | (sample.view(-1, *[1] * (w.dim() - 1)) == 0), 0, u).flatten(1) for u in (a, t))
    w = w.flatten(1)
    if name == "relative_mse":
        return sample * (w * (a - t).square()).sum(1) / ((w * t * t).sum(1) + 1e-8)
    if name == "cosine":
        sample = torch.where(w.any(1), sample, 0.0)
        return sample * (1 - (w * a * t).sum(1) / ((w * a * a).sum(1) * (w * t * t).sum(1) + 1e-12).sqrt())
    return sample * (w * POINTWISE[name](a - t)).mean(1)


def written_out(mode, kind, numbers, shape, losses):
    """The terms of each sample."""
    N, O, W = shape.N, shape.O, shape.D
    weights = {name: w.double() for name, w in weights_of(kind, shape, mode).items()}
    sample = weights.get("sample_weight", torch.ones(N).double())
    output = weights.get("output_weight", torch.ones(O).double())
    each, of_derivatives, mask = weights.get("derivative_weight"), sample, torch.ones(N, W).double()
    entries = output[None, :, None].expand(N, O, W)
    if kind == "derivative [N]":
        of_derivatives = sample * each
    elif kind == "mask":
        mask = each
    elif each is not None:
        entries = entries * (each[..., None] if each.dim() == 2 else each)
    y, jacobian, hessian = derivatives_of(numbers.student, numbers.x)
    targets = targets_of(numbers, MODES[mode][1], 2)
    terms = [term_of(losses[0], y, targets.values, output[None], sample)]
    projections, _ = made(mode, shape, torch.float64)
    f = targets.derivative
    if mode in BASIS or mode == "order 2, columns":
        scale = W**0.5 if "unbiased" in mode else 1.0
        terms.append(term_of(losses[1], scale * jacobian, scale * f, entries * mask[:, None], of_derivatives))
        if "order 2" in mode:
            second = (h.diagonal(dim1=2, dim2=3) for h in (hessian, targets.second))
            terms.append(term_of(losses[1], *second, entries * mask[:, None], of_derivatives))
        return terms
    vectors = projections.values
    if mode in MIXED:
        up = lambda j: torch.einsum("nod,rno->nrd", j, vectors)  # noqa: E731
        known = f.transpose(0, 1) if mode == "vjps" else up(f)
        return [*terms, term_of(losses[1], up(jacobian), known, mask[:, None], of_derivatives)]
    v, of_derivatives = vectors * mask, of_derivatives * mask.any(1)
    along = lambda j: torch.einsum("nod,pnd->npo", j, v)  # noqa: E731
    twice = lambda h: torch.einsum("node,pnd,pne->npo", h, v, v)  # noqa: E731
    rows = entries[:, None, :, 0]
    known = f.transpose(0, 1) if targets.tangents is not None else along(f)
    terms.append(term_of(losses[1], along(jacobian), known, rows, of_derivatives))
    if "order 2" in mode:
        known = targets.second.transpose(0, 1) if targets.seconds is not None else twice(targets.second)
        terms.append(term_of(losses[1], twice(hessian), known, rows, of_derivatives))
    return terms


@each_backend
@each_weight
def test_written_out(mode, kind, backend):
    for i, shape in enumerate((TALL, WIDE)):
        number = WEIGHED.index((mode, kind)) + i
        losses = LOSSES[number % len(LOSSES)], LOSSES[(number + 1) % len(LOSSES)]
        reduction, weights = REDUCTIONS[number % 3], (0.5, 2.0, 1.5)[: 3 if "order 2" in mode else 2]
        numbers = data(shape, "tanh").to(torch.float64)
        numbers.x.requires_grad_()
        targets = targets_of(numbers, MODES[mode][1], 3 if mode == "by gradients" else 2)
        settings = {"value_loss": losses[0], "derivative_loss": losses[1], "reduction": reduction, "weights": weights}
        got = run(mode, numbers, shape, targets, backend, **settings, **weights_of(kind, shape, mode))

        terms = written_out(mode, kind, numbers, shape, losses)
        terms = [{"mean": term.mean(), "sum": term.sum(), "none": term}[reduction] for term in terms]
        loss = sum(w * term for w, term in zip(weights, terms, strict=True))
        leaves = (numbers.x, *numbers.student.parameters())
        gradients = torch.autograd.grad((loss * ramp(loss)).sum(), leaves, materialize_grads=True)
        names = ["loss", "value", "derivative", *["second"] * ("order 2" in mode), "dx"]
        names += [f"d{name}" for name, _ in numbers.student.named_parameters()]
        expected = dict(zip(names, [loss, *terms, *gradients], strict=True))
        assert set(expected) == set(got)
        for name, tensor in got.items():
            close = torch.allclose(tensor, expected[name], **ANOTHER_WAY)
            assert close, (name, float((tensor - expected[name]).abs().max()))


# ---- Missing labels ----


def missing(targets, mode, kind, shape, filler):
    """The targets with a filler in all places that do not count."""
    weights = weights_of(kind, shape, mode)
    counts = torch.ones(shape.N, shape.O, shape.D, dtype=torch.bool)
    values = torch.ones(shape.N, shape.O, dtype=torch.bool)
    for name, w in weights.items():
        each = {"sample_weight": lambda w: w[:, None, None], "output_weight": lambda w: w[:, None]}.get(name)
        if each is None:
            each = (lambda w: w[:, None, :]) if kind == "mask" else (lambda w: w[(...,) + (None,) * (3 - w.dim())])
        counts &= each(w) != 0
        if name != "derivative_weight":
            values &= each(w)[..., 0] != 0
    known = {
        "values": values, "jacobian": counts, "hessian": counts[..., None] & counts[..., None, :],
        "tangents": counts[..., 0], "seconds": counts[..., 0], "vjps": counts[:, 0],
    }  # fmt: skip
    fields = {name: torch.where(known[name], t, filler) for name, t in targets.tensors().items()}
    assert any(not torch.equal(tensor, fields[name]) for name, tensor in targets.tensors().items())
    return sk.Targets(**fields)


@each_backend
@each_weight
def test_any_target_may_be_in_the_place_of_one_of_weight_0(mode, kind, backend):
    for i, shape in enumerate((TALL, WIDE)):
        number = WEIGHED.index((mode, kind)) + i
        numbers = data(shape, "softplus").to(DTYPES[number % 2])
        targets = targets_of(numbers, MODES[mode][1], 3 if mode == "by gradients" else 2)
        settings = {"value_loss": LOSSES[number % 6], "derivative_loss": LOSSES[(number + 2) % 6]}
        settings |= {"reduction": REDUCTIONS[number % 3], "check_finite": True, **weights_of(kind, shape, mode)}
        results = []
        for filler in (0.5, NAN, INF, -INF, 3e38):
            wanted = missing(targets, mode, kind, shape, filler)
            results.append(run(mode, numbers, shape, wanted, backend, **settings))
        for name, tensor in results[0].items():
            assert tensor.isfinite().all(), name
            for other in results[1:]:
                assert torch.equal(tensor, other[name]), name


@each_backend
@pytest.mark.parametrize("mode", BASIS)
def test_a_mask_of_entries_is_their_weights_of_0_and_1(mode, backend):
    numbers, mask = data(WIDE).to(torch.float64), weights_of("derivative [N, O, W]", WIDE)["derivative_weight"] != 0
    jacobian = torch.where(mask, numbers.jacobian, NAN)
    targets, mean = sk.Targets(values=numbers.y, jacobian=jacobian), {"derivative_loss": "relative_mse"}
    step_with = lambda w: run(mode, numbers, WIDE, targets, backend, derivative_weight=w, **mean)  # noqa: E731
    known, weighed = map(step_with, (mask, mask.double()))
    for name, tensor in known.items():
        assert tensor.isfinite().all() and torch.equal(tensor, weighed[name])


@each_backend
@pytest.mark.parametrize("loss", LOSSES)
def test_an_infinite_cotangent_of_a_sample_of_weight_0_ends_there(loss, backend):
    """√S of a loss of 0 has one."""
    numbers = data(WIDE).to(torch.float64)
    keep = torch.arange(WIDE.N) % 3 > 0
    targets = sk.Targets(values=torch.where(keep[:, None], numbers.y, NAN), jacobian=numbers.jacobian)
    settings = {"reduction": "none", "value_loss": loss, "derivative_loss": loss, "backend": backend}
    settings["directions"] = sk.Directions.basis()
    x = numbers.x.requires_grad_()
    each = sk.sobolev_loss(numbers.student, x, targets, sample_weight=keep.double(), **settings)
    assert torch.equal(each == 0, ~keep)
    each.sqrt().sum().backward()
    got = [x.grad, *(p.grad for p in numbers.student.parameters())]
    some = sk.Targets(values=numbers.y[keep], jacobian=numbers.jacobian[keep])
    each = sk.sobolev_loss(numbers.student, x[keep], some, **settings)
    expected = torch.autograd.grad(each.sqrt().sum(), [x, *numbers.student.parameters()])
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, **ANOTHER_WAY)


def test_a_teacher_that_knows_some_columns():
    """Drawn directions lose the masked columns after they are drawn, for student and teacher alike."""
    numbers, mask = data(WIDE).to(torch.float64), weights_of("mask", WIDE)["derivative_weight"]
    jacobian = derivatives_of(numbers.teacher, numbers.x)[1].detach()
    for make in (sk.Directions.sphere, sk.Directions.orthonormal, sk.Directions.coordinate):
        for shared in (False, True):
            v = make(2, seed=3, shared=shared, unbiased=make is not sk.Directions.coordinate)
            along = v.tensor(numbers.x) * mask
            targets = sk.Targets(values=numbers.y, jacobian=jacobian)
            expected = step(numbers, sk.Directions.given(along), "cpu", targets=targets)
            for backend in BACKENDS:
                for teacher in (numbers.teacher, lambda x: numbers.teacher(x)):
                    targets = sk.Targets(values=numbers.y, teacher=teacher)
                    got = step(numbers, v, backend, targets=targets, derivative_weight=mask)
                    for name, tensor in got.items():
                        assert_within_rule(name, tensor, expected[name])


def test_units_and_columns_beside_weights():
    numbers = data(WIDE, "silu").to(torch.float64)
    scale, wrt = torch.tensor([0.5, 3.0]).double(), [2, 0]
    v, mask = sk.Directions.sphere(2, seed=1), weights_of("mask", WIDE)["derivative_weight"][:, wrt]
    jacobian = torch.where(mask[:, None], numbers.jacobian[..., wrt], NAN)
    each = torch.where(mask, 1.5, 0.0).double()[:, None].expand(-1, WIDE.O, -1)
    exact = {"derivatives": "exact"}
    for settings, weight in (({"directions": v}, mask), (exact, each), (exact, mask)):
        results = []
        for backend in BACKENDS:
            x = numbers.x.detach().requires_grad_()
            more = {"wrt": wrt, "input_scale": scale, "backend": backend, "derivative_weight": weight}
            targets = sk.Targets(values=numbers.y, jacobian=jacobian)
            loss = sk.sobolev_loss(numbers.student, x, targets, **settings, **more)
            results.append([loss, *torch.autograd.grad(loss, [x, *numbers.student.parameters()])])
        for a, b in zip(*results, strict=True):
            assert a.isfinite().all() and torch.allclose(a, b, **ANOTHER_WAY)


@each_backend
@pytest.mark.parametrize("kind", kinds_of("exact"))
def test_the_balance_is_that_of_the_entries_that_count(kind, backend):
    numbers, weights = data(WIDE).to(torch.float64), weights_of(kind, WIDE, "exact")
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian * torch.tensor([0.1, 1.0, 30.0]))
    counts = missing(targets, "exact", kind, WIDE, NAN).jacobian.isfinite()
    squares = torch.where(counts, targets.jacobian, 0).square()
    rms = (squares.sum((0, 1)) / counts.sum((0, 1))).sqrt()
    wanted = missing(targets, "exact", kind, WIDE, NAN)
    got = run("exact", numbers, WIDE, wanted, backend, weights="differential-ml", **weights)
    expected = run("exact", numbers, WIDE, targets, backend, weights=(0.25, 0.75), input_scale=1 / rms, **weights)
    for name, tensor in got.items():
        assert_within_rule(name, tensor, expected[name])


@each_backend
def test_a_label_that_counts_and_is_none_is_not_passed_over(backend):
    """One NaN, which once switched the balance off without a word, makes the loss NaN."""
    numbers = data(WIDE)
    numbers.jacobian[3, 1, 0] = NAN
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    weight = torch.ones(WIDE.N)
    for weights in ("differential-ml", (1.0, 1.0)):
        settings = {"weights": weights, "derivatives": "exact", "backend": backend, "derivative_weight": weight}
        assert sk.sobolev_loss(numbers.student, numbers.x, targets, **settings).isnan()
    weight[3] = 0
    assert sk.sobolev_loss(numbers.student, numbers.x, targets, **settings).isfinite()


@pytest.mark.parametrize("size", [1e25, 1e-30])
def test_the_balance_of_jacobians_whose_squares_have_no_number(size):
    numbers = data(WIDE).to(torch.float64)
    exact = sk.columns.Columns().balanced(numbers.jacobian).scale
    assert_within_rule("scale", size * sk.columns.Columns().balanced(size * numbers.jacobian.float()).scale, exact)


# ---- Students that are not looked into, the module, compilation, half precision ----


def test_a_student_that_is_not_looked_into():
    numbers = data(WIDE).to(torch.float64)
    student = lambda x: numbers.student(x)  # noqa: E731
    for mode, kind in WEIGHED:
        if "order 2" in mode:
            continue
        targets = targets_of(numbers, MODES[mode][1], 3 if mode == "by gradients" else 2)
        settings = weights_of(kind, WIDE, mode)
        expected = run(mode, numbers, WIDE, targets, "reference", **settings)["loss"]
        projections, more = made(mode, WIDE, torch.float64)
        more = more | {"cotangents" if isinstance(projections, sk.Cotangents) else "directions": projections}
        got = sk.sobolev_loss(student, numbers.x, targets, **more, **in_dtype_of(numbers, settings))
        assert_within_rule(f"{mode}, {kind}", got, expected)
    weight = torch.ones(WIDE.N, WIDE.O + 1).double()
    with pytest.raises(ValueError, match=r"derivative_weight: expected (2 outputs|torch.float64 \[19\], \[19, 2\])"):
        sk.sobolev_loss(student, numbers.x, sk.Targets(teacher=student), derivative_weight=weight)


def test_the_module_takes_them():
    numbers, weights = data(WIDE), weights_of("all", WIDE, "exact")
    targets = missing(targets_of(numbers, ("values", "jacobian")), "exact", "all", WIDE, NAN)
    output = weights.pop("output_weight")
    settings = {"derivatives": "exact", "output_weight": output}
    loss = sk.SobolevLoss(**settings)
    expected = sk.sobolev_loss(numbers.student, numbers.x, targets, **settings, **weights)
    for module in (loss, copy.deepcopy(loss)):
        assert torch.equal(module(numbers.student, numbers.x, targets, **weights), expected)
        assert torch.equal(module(numbers.student, numbers.x, targets, *weights.values()), expected)


@pytest.mark.parametrize("kind", ["all", "mask", "derivative [N]"])
@pytest.mark.parametrize("mode", ["by tangents", "exact"])
def test_compiled(mode, kind):
    numbers, weights = data(WIDE), weights_of(kind, WIDE, mode)
    targets = missing(targets_of(numbers, MODES[mode][1]), mode, kind, WIDE, NAN)
    projections = sk.Directions.sphere(2, seed=1) if mode == "by tangents" else None

    def loss(x, weights):
        settings = {"directions": projections, **MODES[mode][2], **weights}
        return sk.sobolev_loss(numbers.student, x, targets, reduction="none", **settings).sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        x = numbers.x.detach().requires_grad_()
        value = function(x, weights)
        results.append([value, *torch.autograd.grad(value, [x, *numbers.student.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    half, weights = data(WIDE).to(dtype), weights_of("all", WIDE, "exact")
    weights = {name: w.to(dtype) for name, w in weights.items()}
    targets = missing(targets_of(half, ("values", "jacobian")), "exact", "all", WIDE, NAN)
    got = run("exact", half, WIDE, targets, **weights)
    wide = sk.Targets(**{name: t.float() for name, t in targets.tensors().items()})
    expected = run("exact", half.to(torch.float32), WIDE, wide, **weights)
    for name, tensor in got.items():
        assert torch.equal(tensor, expected[name].to(dtype)), name


def test_weights_of_any_strides():
    numbers, one = data(WIDE).to(torch.float64), torch.tensor(2.0).double()
    plain = run("exact", numbers, WIDE, None)
    N, O, W = WIDE.N, WIDE.O, WIDE.D
    for expanded in (one.expand(N), one.expand(N, O), one.expand(N, O, W)):
        got = run("exact", numbers, WIDE, None, derivative_weight=expanded)
        assert_within_rule("derivative", got["derivative"], 2 * plain["derivative"])
        assert torch.equal(got["value"], plain["value"])
    for mode, size in (("exact", (N, O, W)), ("by tangents", (N, O)), ("by gradients", (N, O))):
        wide = random(*size).double().abs()
        back = wide.permute(*range(wide.dim())[::-1]).contiguous().permute(*range(wide.dim())[::-1])
        every_other = torch.stack([wide, wide * NAN], -1)[..., 0]
        results = [run(mode, numbers, WIDE, None, derivative_weight=w) for w in (wide, back, every_other)]
        for name, tensor in results[0].items():
            assert all(torch.equal(tensor, other[name]) for other in results[1:])


# ---- Refusals ----

NUMBERS = data(WIDE)
N, O, W = WIDE.N, WIDE.O, WIDE.D
V, U = directions_of("given", WIDE), cotangents_of("given", WIDE)
ONES = torch.ones(N)
UNMIXED = 'derivative_weight: expected directions, Cotangents.basis() or derivatives="exact", got mixed outputs'
OF_ENTRIES = 'derivative_weight: expected derivatives="exact", Directions.basis() or Cotangents.basis() (along other'
RANGE = "expected finite numbers >= 0, got numbers from"
SHAPES = f"derivative_weight: expected torch.float32 [{N}], [{N}, {O}]"


def refused(targets=("values", "jacobian"), **settings):
    made = targets if isinstance(targets, sk.Targets) else targets_of(NUMBERS, targets, 2)
    return lambda: sk.sobolev_loss(NUMBERS.student, NUMBERS.x, made, **settings)


REFUSED = {
    "[N, O] of mixed outputs": (refused(cotangents=U, derivative_weight=torch.ones(N, O)), UNMIXED),
    "[N, O, W] of mixed outputs": (refused(cotangents=U, derivative_weight=torch.ones(N, O, W)), OF_ENTRIES),
    "[N, O, W] along directions": (refused(directions=V, derivative_weight=torch.ones(N, O, W)), OF_ENTRIES),
    "[N, O, W] of order 2": (
        refused(
            ("values", "jacobian", "hessian"), directions=sk.Directions.basis(), order=2,
            derivative_weight=torch.ones(N, O, W),
        ),
        "derivative_weight: expected order 1, for a weight of each entry of the Jacobian, got a tensor float32 [19, 2",
    ),
    "a mask of projected tangents": (
        refused(("values", "tangents"), directions=V, derivative_weight=torch.ones(N, W).bool()),
        "derivative_weight: expected a jacobian, hessian or teacher to mask alike, got projected tangents",
    ),
    "too few": (refused(derivative_weight=ONES[:3]), f"{SHAPES}, or a mask of columns, torch.bool [{N}, {W}], got"),
    "too few entries": (
        refused(derivatives="exact", derivative_weight=torch.ones(N, O, W + 1)),
        f"{SHAPES} or [{N}, {O}, {W}], or a mask",
    ),
    "columns that are no mask": (refused(derivative_weight=torch.ones(N, W)), SHAPES),
    "a mask of outputs": (refused(derivative_weight=torch.ones(N, O).bool()), SHAPES),
    "a mask of samples": (refused(derivative_weight=ONES.bool()), SHAPES),
    "a number": (refused(derivative_weight=torch.tensor(1.0)), SHAPES),
    "whole numbers": (refused(derivative_weight=ONES.long()), SHAPES),
    "another dtype": (refused(derivative_weight=ONES.double()), SHAPES),
    "another device": (refused(derivative_weight=ONES.to("meta")), "derivative_weight: expected a tensor on cpu, as"),
    "requires_grad": (
        refused(derivative_weight=ONES.clone().requires_grad_()),
        "derivative_weight: expected a tensor without requires_grad (no gradient to weights is provided), got a tensor",
    ),
}  # fmt: skip
BAD = {"negative": -0.5, "NaN": NAN, "infinite": INF}
COUNTS = {"sample_weight": (N,), "output_weight": (O,), "derivative_weight": (N, O)}
for what, number in BAD.items():
    for argument, size in COUNTS.items():
        weight = torch.ones(size)
        weight.view(-1)[1] = number
        REFUSED[f"{what} {argument}"] = refused(**{argument: weight}), f"{argument}: {RANGE}"


@pytest.mark.parametrize("call, message", REFUSED.values(), ids=REFUSED)
def test_refused(call, message):
    before = torch.get_rng_state()
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value) and len(str(error.value)) < 400
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("weight", [1.0, [1.0] * N, "all"])
def test_what_is_no_tensor(weight):
    with pytest.raises(TypeError, match=r"derivative_weight: expected torch.float32 \[19\], \[19, 2\], or a mask"):
        refused(derivative_weight=weight)()


def test_check_finite_still_finds_what_counts():
    numbers = data(WIDE)
    numbers.jacobian[3, 1, 0] = numbers.jacobian[4, 0, 2] = numbers.y[5, 1] = NAN
    mask = torch.ones(N, W, dtype=torch.bool)
    mask[3, 0] = False
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)

    def loss(**settings):
        return sk.sobolev_loss(numbers.student, numbers.x, targets, check_finite=True, **settings)

    with pytest.raises(ValueError, match="values: expected finite numbers, got 1 that are not"):
        loss(derivative_weight=mask)
    sample = torch.ones(N)
    sample[5] = 0
    with pytest.raises(ValueError, match="jacobian: expected finite numbers, got 1 that are not"):
        loss(derivative_weight=mask, sample_weight=sample)
    mask[4, 2] = False
    assert loss(derivative_weight=mask, sample_weight=sample).isfinite()
    with pytest.raises(ValueError, match="jacobian: expected finite numbers, got 2 that are not"):
        loss(sample_weight=sample)
