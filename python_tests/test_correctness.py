"""The fused CPU step against the float64 reference, by the one rule, over the whole of every table."""

from itertools import cycle, product

import pytest
import torch
from test_reference import written_out
from torch import nn

import sobolev_kernels as sk
from sobolev_kernels.enums import SIDES
from sobolev_kernels.math.directions import DISTRIBUTIONS
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import compare, computed_from, step
from sobolev_kernels.testing.problems import (
    CURVED,
    DTYPES,
    LOSS_NAMES,
    SHAPES,
    SMALL,
    TINY,
    Shape,
    cotangents_of,
    data,
    directions_of,
    fixed,
    targets_of,
)

REDUCTIONS = ("mean", "none", "sum")
EVERY_DISTRIBUTION = [*DISTRIBUTIONS, "given"]


def alternate(i):
    """A pair of losses and a reduction; four or three consecutive numbers meet them all."""
    losses = {"value_loss": LOSS_NAMES[i % 4], "derivative_loss": LOSS_NAMES[(i + 1) % 4]}
    return losses | {"reduction": REDUCTIONS[i % 3]}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", sk.ACTIVATIONS)
def test_every_row_of_every_table(activation, shape):
    """All pairs of activation, shape and dtype; of distributions each second, and the others with the next shape."""
    base = [data(shape, activation, bias) for bias in (True, False)]
    start = list(sk.ACTIVATIONS).index(activation) + SHAPES.index(shape)
    for (t, dtype), (s, side) in product(enumerate(DTYPES), enumerate(SIDES)):
        for i, distribution in enumerate(EVERY_DISTRIBUTION[(s + t + start) % 2 :: 2]):
            numbers = base[(i + t) % 2].to(dtype)
            with computed_from(side):
                compare(numbers, directions_of(distribution, shape), **alternate(start + i + t))


COTANGENTS = [(distribution, ("values", "jacobian")) for distribution in EVERY_DISTRIBUTION]
COTANGENTS += [("given", ("values", "vjps")), ("sphere", ("values", "vjps"))]
COTANGENTS += [("normal", ("teacher",)), ("given", ("function",))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", sk.ACTIVATIONS)
def test_every_row_with_cotangents(activation, shape):
    """All pairs of activation, shape, dtype, reduction, and losses with cotangents, which take turns as above."""
    base = [data(shape, activation, bias) for bias in (True, False)]
    row = SHAPES.index(shape)
    start = list(sk.ACTIVATIONS).index(activation) + row
    for t, dtype in enumerate(DTYPES):
        for i, (distribution, targets) in enumerate(COTANGENTS[(t + start) % 2 :: 2]):
            numbers = base[(i + t) % 2].to(dtype)
            compare(numbers, cotangents_of(distribution, shape), targets, **alternate(start + row + i + t))


ORDER_2 = [
    ("values", "jacobian", "hessian"),
    ("values", "tangents", "seconds"),
    ("values", "jacobian", "seconds"),
    ("teacher",),
    ("function",),
]
THREE_WEIGHTS = [(1.0, 1.0, 1.0), (0.5, 1.0, 0.3), (0.0, 0.0, 1.0), (1.0, 2.0, 0.0), (0.7, 0.0, 1.5), (0.0, 1.0, 1.0)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", CURVED)
def test_every_row_of_order_2(activation, shape):
    base = [data(shape, activation, bias) for bias in (True, False)]
    start = 2 + list(sk.ACTIVATIONS).index(activation) + SHAPES.index(shape)
    distributions = cycle(EVERY_DISTRIBUTION[start % 7 :] + EVERY_DISTRIBUTION[: start % 7])
    for t, dtype in enumerate(DTYPES):
        for i, targets in enumerate(ORDER_2):
            numbers, distribution = base[(i + t) % 2].to(dtype), next(distributions)
            if distribution == "basis" and (shape.D > 20 or "tangents" in targets or "seconds" in targets):
                distribution = "coordinate"
            weights = THREE_WEIGHTS[(start + i + t) % 6]
            directions = directions_of(distribution, shape)
            compare(numbers, directions, targets, order=2, weights=weights, **alternate(start + i + t))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "targets, weights",
    [
        (("values", "hessian"), (0.5, 0.0, 1.5)),
        (("values", "seconds"), (0.5, 0.0, 1.5)),
        (("values", "jacobian"), (0.5, 1.5, 0.0)),
        (("values", "tangents"), (0.5, 1.5, 0.0)),
        (("tangents", "hessian"), (0.0, 0.5, 1.5)),
        (("seconds",), (0.0, 0.0, 2.0)),
        (("jacobian",), (0.0, 2.0, 0.0)),
    ],
    ids=lambda values: " ".join(map(str, values)),
)
def test_order_2_without_a_target(targets, weights, reduction, dtype):
    """A term of weight zero needs none, and is NaN then."""
    numbers = data(SMALL, "softplus").to(dtype)
    got = compare(numbers, directions_of("normal", SMALL), targets, order=2, weights=weights, reduction=reduction)
    for name, weight in zip(("value", "derivative", "second"), weights, strict=True):
        assert bool(got[name].isnan().all()) == (weight == 0)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_order_2_of_values_alone(backend):
    numbers = data(SMALL)
    targets = sk.Targets(values=numbers.y)
    terms = sk.sobolev_loss(
        numbers.student, numbers.x, targets, order=2, weights=(1.0, 0.0, 0.0), return_terms=True, backend=backend
    )
    assert terms.derivative.isnan() and terms.second.isnan()


MODES = {
    "directions": ("directions", ("values", "jacobian"), {}),
    "cotangents": ("cotangents", ("values", "jacobian"), {}),
    "exact": (None, ("values", "jacobian"), {"derivatives": "exact"}),
    "order 2": ("directions", ("values", "jacobian", "hessian"), {"order": 2}),
}
PROJECTIONS = {"directions": directions_of, "cotangents": cotangents_of, None: lambda *_, **__: None}
each_mode = pytest.mark.parametrize("mode", MODES)


def compare_mode(mode, numbers, shape, distribution="sphere", P=None, **settings):
    kind, targets, mode_settings = MODES[mode]
    return compare(numbers, PROJECTIONS[kind](distribution, shape, P=P), targets, **{**mode_settings, **settings})


PARAMETERS = [("leaky_relu", 0.2), ("elu", 0.7), ("softplus", 3.0, 5.0), ("sin", 7.5)]


def with_every_mode(activations):
    """Order 2 wants them curved."""
    names = [(activation, activation if isinstance(activation, str) else activation[0]) for activation in activations]
    return [(mode, activation) for mode in MODES for activation, name in names if mode != "order 2" or name in CURVED]


@pytest.mark.parametrize("mode, activation", with_every_mode(PARAMETERS), ids=str)
def test_parameters_of_activations(mode, activation):
    compare_mode(mode, data(SMALL, activation), SMALL)


@pytest.mark.parametrize("mode, last", with_every_mode(sk.ACTIVATIONS))
def test_activation_after_the_last_layer(mode, last):
    for dtype in DTYPES:
        compare_mode(mode, data(SMALL, "tanh", last=last).to(dtype), SMALL, "normal")


@pytest.mark.parametrize("delta", [0.1, 2.0])
@each_mode
def test_huber_delta(mode, delta):
    compare_mode(mode, data(SMALL), SMALL, value_loss=("huber", delta), derivative_loss=("huber", delta))


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.3, 2.5)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@each_mode
def test_weights_and_reductions(mode, weights, reduction):
    weights = (*weights, 0.7) if mode == "order 2" else weights
    compare_mode(mode, data(SMALL), SMALL, weights=weights, reduction=reduction)


@pytest.mark.parametrize("losses", [("mse", "huber"), ("relative_mse", "cosine"), ("cosine", "l1")], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("term", range(3))
@each_mode
def test_a_term_of_weight_zero_may_have_any_target(mode, term, reduction, losses):
    """Loss and gradients ignore it; what is reported of it is NaN where its target is."""
    kinds = MODES[mode][1]
    if term == len(kinds):
        return
    weights = tuple(0.0 if i == term else 0.5 + i for i in range(len(kinds)))

    def targets(numbers):
        known = targets_of(numbers, kinds)
        return known.replace(**{kinds[term]: torch.full_like(getattr(known, kinds[term]), torch.nan)})

    for dtype, side in product(DTYPES, SIDES):
        settings = {**MODES[mode][2], "value_loss": losses[0], "derivative_loss": losses[1]}
        projections = PROJECTIONS[MODES[mode][0]]("sphere", SMALL)
        with computed_from(side):
            numbers = data(SMALL).to(dtype)
            got = compare(numbers, projections, targets, weights=weights, reduction=reduction, **settings)
        assert got["loss"].isfinite().all() and list(got.values())[1 + term].isnan().all()


@pytest.mark.parametrize("P", range(1, 10))
@pytest.mark.parametrize("mode", ["directions", "cotangents", "order 2"])
def test_number_of_projections(mode, P):
    compare_mode(mode, data(SMALL), SMALL, P=P)
    many = Shape(45, 9, 11, 1, 9, P, "room for as many that are orthonormal")
    compare_mode(mode, data(many, "silu"), many, "orthonormal")


@pytest.mark.parametrize("distribution", ["sphere", "normal", "rademacher", "coordinate", "orthonormal"])
@pytest.mark.parametrize("mode", ["directions", "cotangents", "order 2"])
def test_shared_and_unbiased_projections(mode, distribution):
    kind, targets, mode_settings = MODES[mode]
    make = getattr(sk.Cotangents if kind == "cotangents" else sk.Directions, distribution)
    compare(data(SMALL), make(2, seed=3, shared=True), targets, **mode_settings)
    compare(data(SMALL), make(2, seed=3, unbiased=True), targets, **mode_settings)


@each_mode
def test_no_hidden_layer_at_all(mode):
    shape = Shape(45, 3, 1, 0, 2, 2, "one linear layer")
    compare_mode(mode, data(shape), shape)


EXACT_SHAPES = [
    Shape(70, 5, 21, 2, 2, 1, "O < W: by gradients"),
    Shape(70, 2, 21, 2, 5, 1, "O > W: by tangents"),
    Shape(70, 3, 21, 2, 3, 1, "O = W"),
    Shape(70, 6, 21, 2, 1, 1, "scalar"),
    Shape(70, 1, 21, 2, 4, 1, "one input"),
]


@pytest.mark.parametrize("shape", EXACT_SHAPES, ids=lambda shape: shape.why)
def test_exact_is_the_mean_over_the_jacobian_from_either_side(shape):
    for dtype in DTYPES:
        numbers = data(shape, "silu").to(dtype)
        if shape.O != shape.D:
            side = "cotangents" if shape.O < shape.D else "directions"
            text = sk.explain(numbers.student, numbers.x, derivatives="exact")
            assert f"\n{side}" in text
        exact = numbers.to(torch.float64)
        x = exact.x.requires_grad_()
        everywhere = torch.eye(shape.D, dtype=torch.float64)[:, None, :].expand(-1, shape.N, -1)
        expected = written_out(exact.student, x, exact.y, exact.jacobian, everywhere, (0.7, 1.9))
        tensors = dict(exact.student.named_parameters(prefix="d"))
        gradients = torch.autograd.grad(expected, [x, *tensors.values()])
        names = ["dx", *(name.replace("d.", "d", 1) for name in tensors)]
        ways = [(None, {"derivatives": "exact"}), (sk.Directions.basis(), {}), (sk.Cotangents.basis(), {})]
        for projections, settings in ways:
            settings["weights"] = (0.7, 1.9)
            got = step(numbers, projections, "cpu", **settings)
            plain = step(numbers, projections, "reference", **settings)
            for name, tensor in zip(["loss", *names], [expected, *gradients], strict=True):
                assert_within_rule(name, got[name], tensor, plain[name])


@pytest.mark.parametrize("targets", [("values", "jacobian"), ("teacher",), ("function",)], ids=str)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.D * shape.O < 500], ids=str)
def test_exact_of_every_shape(shape, targets):
    for i, dtype in enumerate(DTYPES):
        start = 1 + SHAPES.index(shape)
        compare(data(shape, "gelu").to(dtype), None, targets, derivatives="exact", **alternate(start + i))


COLUMNS = {
    "a prefix": [0, 1],
    "permuted": [3, 0],
    "all, permuted": [2, 4, 0, 3, 1],
    "all": range(5),
    "a single one": (2,),
    "the last": (4,),
    "all but the first": (1, 2, 3, 4),
}
WRT_MODES = {
    "directions, jacobian": (sk.Directions.sphere(2, seed=1), ("values", "jacobian"), {}),
    "directions, tangents": (sk.Directions.normal(2, seed=1), ("values", "tangents"), {}),
    "directions, teacher": (sk.Directions.sphere(2, seed=1), ("teacher",), {}),
    "directions, function": (sk.Directions.basis(), ("function",), {}),
    "cotangents, jacobian": (sk.Cotangents.sphere(2, seed=1), ("values", "jacobian"), {}),
    "cotangents, vjps": (sk.Cotangents.normal(2, seed=1), ("values", "vjps"), {}),
    "cotangents, teacher": (sk.Cotangents.normal(2, seed=1), ("teacher",), {}),
    "cotangents, function": (sk.Cotangents.basis(), ("function",), {}),
    "exact": (None, ("values", "jacobian"), {"derivatives": "exact"}),
    "order 2, hessian": (sk.Directions.normal(3, seed=1), ("values", "jacobian", "hessian"), {"order": 2}),
    "order 2, seconds": (sk.Directions.normal(3, seed=1), ("values", "tangents", "seconds"), {"order": 2}),
    "order 2, teacher": (sk.Directions.rademacher(2, seed=1), ("teacher",), {"order": 2}),
    "order 2, function": (sk.Directions.basis(), ("function",), {"order": 2}),
}


@pytest.mark.parametrize("wrt", COLUMNS.values(), ids=COLUMNS)
@pytest.mark.parametrize("projections, targets, settings", WRT_MODES.values(), ids=WRT_MODES)
def test_columns(projections, targets, settings, wrt):
    shape = Shape(45, 5, 19, 2, 2, 2, "five columns, two outputs")
    for i, (dtype, side) in enumerate(product(DTYPES, SIDES)):
        with computed_from(side):
            compare(data(shape, "tanh").to(dtype), projections, targets, wrt=wrt, **settings, **alternate(len(wrt) + i))


def test_columns_are_those_of_the_jacobian():
    """The loss written out with autograd, on the columns 3 and 1 of it."""
    shape = Shape(20, 5, 9, 2, 2, 1, "five columns")
    numbers = data(shape, "silu").to(torch.float64)
    x, wrt = numbers.x.requires_grad_(), [3, 1]
    unit = torch.eye(5, dtype=torch.float64)[wrt][:, None, :].expand(-1, shape.N, -1)
    expected = written_out(numbers.student, x, numbers.y, numbers.jacobian, unit, (1.0, 1.0))
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian[..., wrt])
    for backend in ("cpu", "reference"):
        got = sk.sobolev_loss(numbers.student, x, targets, derivatives="exact", wrt=wrt, backend=backend)
        for parameter in (x, *numbers.student.parameters()):
            wanted = torch.autograd.grad(expected, parameter, retain_graph=True)[0]
            assert_within_rule("gradient", torch.autograd.grad(got, parameter, retain_graph=True)[0], wanted)
        assert_within_rule("loss", got, expected)


class Wrapped(nn.Module):
    """A student that is not recognised, so that autograd differentiates it."""

    def __init__(self, student):
        super().__init__()
        self.student = student

    def forward(self, x):
        return 1.0 * self.student(x)


@pytest.mark.parametrize("wrt", [None, [2, 0]], ids=["all columns", "two columns"])
@pytest.mark.parametrize("targets", [None, ("teacher",), ("function",)], ids=["tensors", "teacher", "function"])
@each_mode
def test_a_student_that_is_not_recognised(mode, targets, wrt):
    numbers = data(SMALL, "tanh").to(torch.float64)
    kind, tensors, mode_settings = MODES[mode]
    W = 3 if wrt is None else len(wrt)
    projections = PROJECTIONS[kind]("sphere", SMALL)
    made = targets_of(numbers, targets or tensors, SMALL.P, wrt)
    expected = step(numbers, fixed(projections, numbers, W), "reference", targets=made, wrt=wrt, **mode_settings)
    numbers.student = Wrapped(numbers.student)
    got = step(numbers, projections, None, targets=made, wrt=wrt, **mode_settings)
    for name, tensor in got.items():
        assert_within_rule(name, tensor, expected[name.replace("dstudent.", "d")])


def test_gradcheck_of_every_mode():
    for mode, reduction, side in product(MODES, ("mean", "none"), SIDES):
        with computed_from(side):
            numbers = data(TINY).to(torch.float64)
            kind, targets, mode_settings = MODES[mode]
            settings = {
                **mode_settings,
                "targets": targets_of(numbers, targets),
                "reduction": reduction,
                "backend": "cpu",
            }
            if kind is not None:
                settings[kind] = PROJECTIONS[kind]("normal", TINY)

            def loss(x, *_, numbers=numbers, settings=settings):
                return sk.sobolev_loss(numbers.student, x, **settings)

            assert torch.autograd.gradcheck(loss, (numbers.x.requires_grad_(), *numbers.student.parameters()))


KINDS = ["jacobian", "tangents", "mlp teacher", "function teacher"]


@pytest.mark.parametrize("kind", KINDS)
def test_targets_of_every_kind_give_the_same_loss(kind):
    numbers, directions = data(SMALL), directions_of("sphere", SMALL)
    teacher = with_true_targets(numbers)[0]
    v = directions.tensor(numbers.x)
    targets = {
        "jacobian": sk.Targets(values=numbers.y, jacobian=numbers.jacobian),
        "tangents": sk.Targets(
            values=numbers.y, tangents=torch.einsum("nod,pnd->pno", numbers.jacobian, v), directions=directions
        ),
        "mlp teacher": sk.Targets(teacher=teacher),
        "function teacher": sk.Targets(teacher=lambda x: teacher(x)),
    }[kind]
    exact = numbers.to(torch.float64)
    expected = step(exact, sk.Directions.given(v.double()), "reference")
    baseline = step(numbers, sk.Directions.given(v), "reference")
    got = step(numbers, None if targets.directions is not None else directions, "cpu", targets=targets)
    for name, tensor in got.items():
        assert_within_rule(name, tensor, expected[name], baseline[name])
    assert all(p.grad is None for p in teacher.parameters())


def with_true_targets(numbers):
    """A teacher and its Hessian [N, O, D, D]; the values and Jacobian of `numbers` become its own."""
    teacher = numbers.teacher
    with torch.no_grad():
        numbers.y = teacher(numbers.x)
    numbers.jacobian = torch.func.vmap(torch.func.jacrev(teacher))(numbers.x).detach()
    return teacher, torch.func.vmap(torch.func.hessian(teacher))(numbers.x).detach()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["cotangents", "exact", "order 2"])
def test_targets_of_every_kind_give_the_same_loss_in_every_mode(mode, kind):
    numbers = data(SMALL).to(torch.float64)
    teacher, hessian = with_true_targets(numbers)
    name, _, mode_settings = MODES[mode]
    projections = PROJECTIONS[name]("sphere", SMALL)
    fields = {"values": numbers.y, "jacobian": numbers.jacobian}
    if mode == "order 2":
        fields["hessian"] = hessian
    expected = step(numbers, projections, "reference", targets=sk.Targets(**fields), **mode_settings)
    if kind == "tangents" and mode == "order 2":
        v = projections.tensor(numbers.x)
        fields["tangents"] = torch.einsum("nod,pnd->pno", fields.pop("jacobian"), v)
        fields["seconds"] = torch.einsum("node,pnd,pne->pno", fields.pop("hessian"), v, v)
        fields["directions"], projections = projections, None
    elif kind == "tangents":
        if mode == "exact":
            projections, mode_settings = sk.Cotangents.basis(), {}
        u = projections.tensor(numbers.y)
        fields["vjps"] = torch.einsum("nod,rno->rnd", fields.pop("jacobian"), u)
        fields["cotangents"], projections = projections, None
    elif kind != "jacobian":
        fields = {"teacher": teacher if kind == "mlp teacher" else lambda x: teacher(x)}
    got = step(numbers, projections, "cpu", targets=sk.Targets(**fields), **mode_settings)
    for name, tensor in got.items():
        assert_within_rule(name, tensor, expected[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_mode
def test_half_precision_is_computed_in_float32(mode, dtype):
    kind, targets, mode_settings = MODES[mode]
    projections = PROJECTIONS[kind]("sphere", SMALL)
    numbers = data(SMALL).to(dtype)
    single = numbers.to(torch.float32)
    fields = [targets_of(n, targets) for n in (numbers, single)]
    if mode == "order 2":
        fields[1] = sk.Targets(values=single.y, jacobian=single.jacobian, hessian=fields[0].hessian.float())
    got, expected = (
        step(n, projections, "cpu", targets=t, **mode_settings) for n, t in zip((numbers, single), fields, strict=True)
    )
    for name, tensor in got.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, expected[name].to(dtype)), name
