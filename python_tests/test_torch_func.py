"""What PyTorch's transforms and double backward ask of a fused result is refused in words, or right; never zero."""

import re

import pytest
import torch
from small_case import EXACT, LOSSES, RESULTS, TENSORS, USED, N, O, P, V, call
from test_reference import written_out
from torch.autograd import forward_ad

import sobolev_kernels as sk
from sobolev_kernels.testing import assert_within_rule

COMPILED = ["loss", "per sample", "jvp"]  # compiling takes seconds, and the others go the same way


def make_dual(f, tensor):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(tensor, torch.ones_like(tensor)))).tangent


FORWARD = {
    "make_dual": make_dual,
    "torch.func.jvp": lambda f, t: torch.func.jvp(f, (t,), (torch.ones_like(t),))[1],
    "jacfwd": lambda f, t: torch.func.jacfwd(f)(t),
    "jacfwd of vmap": lambda f, t: torch.func.jacfwd(lambda t: torch.func.vmap(f)(t[None]))(t),
}
REVERSE = {
    "grad": lambda f, t: torch.func.grad(f)(t),
    "vjp": lambda f, t: torch.func.vjp(f, t)[1](torch.ones_like(f(t))),
    "jacrev": lambda f, t: torch.func.jacrev(f)(t),
    "vmap": lambda f, t: torch.func.vmap(f)(torch.stack((t, t))),
    "grad of grad": lambda f, t: torch.func.grad(lambda t: torch.func.grad(f)(t).sum())(t),
}
NO_FORWARD = re.compile(r'forward-mode AD: no tangent is provided .* silent zero\); pass backend="reference"')
NO_TRANSFORM = re.compile(r'torch\.func: grad, vjp, vmap .* do not go through the fused step; .* backend="reference"')
PLACES = [(result, name) for result, names in USED.items() for name in names]


@pytest.mark.parametrize("way", FORWARD)
@pytest.mark.parametrize("result, name", PLACES)
def test_forward_mode_is_refused_and_never_zero(result, name, way):
    with pytest.raises(sk.NotProvided, match=NO_FORWARD):
        FORWARD[way](lambda tensor: call(result, "cpu", **{name: tensor}), TENSORS[name])


@pytest.mark.parametrize("result", [*COMPILED, "laplacian"])
def test_forward_mode_in_compiled_code_is_refused(result):
    torch._dynamo.reset()
    slope = lambda x: FORWARD["torch.func.jvp"](lambda x: call(result, "cpu", x=x), x)  # noqa: E731
    with pytest.raises(sk.NotProvided, match=NO_FORWARD):
        torch.compile(slope, backend="eager")(EXACT.x)


@pytest.mark.parametrize("way", REVERSE)
@pytest.mark.parametrize("name", ["x", "weight"])
@pytest.mark.parametrize("result", RESULTS)
def test_transforms_of_torch_func_are_refused(result, name, way):
    with pytest.raises(sk.NotProvided, match=NO_TRANSFORM):
        REVERSE[way](lambda tensor: call(result, "cpu", **{name: tensor}), TENSORS[name])


def test_transforms_over_input_scale():
    """Whether it is > 0 cannot be asked of a batch."""
    with pytest.raises(sk.NotProvided, match=NO_TRANSFORM):
        REVERSE["vmap"](lambda scale: call("balanced", "cpu", input_scale=scale), TENSORS["input_scale"])
    scales = torch.stack((TENSORS["input_scale"], 3 * TENSORS["input_scale"]))
    got = torch.func.vmap(lambda scale: call("balanced", "reference", input_scale=scale))(scales)
    expected = torch.stack([call("balanced", "reference", input_scale=scale) for scale in scales])
    assert_within_rule("losses", got, expected)


@pytest.mark.parametrize("name", ["x", "weight"])
@pytest.mark.parametrize("result", RESULTS)
def test_the_reference_goes_through_every_transform(result, name):
    """Its gradients and directional derivatives are those of the fused step's own backward."""
    tensor = TENSORS[name].clone().requires_grad_()
    gradient = torch.autograd.grad(call(result, "cpu", **{name: tensor}), tensor)[0]
    f = lambda tensor: call(result, "reference", **{name: tensor})  # noqa: E731
    for way in ("grad", "jacrev"):
        assert_within_rule(way, REVERSE[way](f, TENSORS[name]), gradient)
    assert_within_rule("jacfwd", FORWARD["jacfwd"](f, TENSORS[name]), gradient)
    for way in ("make_dual", "torch.func.jvp"):  # beside the numbers that it is the sum of, which cancel
        got, expected = (
            torch.cat([t[None], gradient.flatten()]) for t in (FORWARD[way](f, TENSORS[name]), gradient.sum())
        )
        assert_within_rule(way, got, expected)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: sk.laplacian(EXACT.student, x, backend="reference")[1].sum(),
        lambda x: sk.jvp(EXACT.student, x, sk.Directions.sphere(2, seed=1), backend="reference")[1].sum(),
        lambda x: sk.sobolev_loss(
            EXACT.student, x, sk.Targets(values=EXACT.y, jacobian=EXACT.jacobian), derivatives="exact",
            backend="reference",
        ),
    ],
    ids=["laplacian", "jvp", "exact loss"],
)  # fmt: skip
def test_the_reference_goes_through_transforms_with_what_it_draws(function):
    x = EXACT.x.clone().requires_grad_()
    assert_within_rule("grad", torch.func.grad(function)(EXACT.x), torch.autograd.grad(function(x), x)[0])


def penalty(f, x, parameters, beside):
    """Gradients of a gradient penalty; `beside` adds a term that autograd would differentiate alone, without a word."""
    x = x.clone().requires_grad_()
    value = f(x) + x.pow(3).sum() if beside else f(x)
    slope = torch.autograd.grad(value, x, create_graph=True)[0]
    return torch.autograd.grad(slope.square().sum(), (x, *parameters), materialize_grads=True)


DOUBLE = re.compile(r'double backward: .* pass backend="reference"')


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another term"])
@pytest.mark.parametrize("result", LOSSES)
def test_double_backward_of_a_loss_is_refused_and_never_zero(result, beside):
    with pytest.raises(sk.NotProvided, match=DOUBLE):
        penalty(lambda x: call(result, "cpu", x=x), EXACT.x, EXACT.student.parameters(), beside)


# dynamo itself, where it looks into a backward
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize(
    "result, whole",
    [(result, False) for result in (*COMPILED, "order 2", "laplacian")] + [("loss", True), ("jvp", True)],
)
def test_double_backward_in_compiled_code_is_refused_or_right(result, whole):
    torch._dynamo.reset()
    step = lambda x: call(result, "cpu", x=x)  # noqa: E731
    step = step if whole else torch.compile(step, backend="eager")
    f = lambda x: penalty(step, x, EXACT.student.parameters(), beside=True)  # noqa: E731
    f = torch.compile(f, backend="eager") if whole else f
    if result in LOSSES:
        with pytest.raises(sk.NotProvided, match=DOUBLE):
            f(EXACT.x)
        return
    expected = penalty(lambda x: call(result, "reference", x=x), EXACT.x, EXACT.student.parameters(), beside=True)
    for i, (g, e) in enumerate(zip(f(EXACT.x), expected, strict=True)):
        assert_within_rule(f"second derivative {i}", g, e)


def test_double_backward_to_the_cotangent_is_refused_or_right():
    for result in RESULTS:
        found = []
        for backend in ("cpu", "reference"):
            x, cotangent = EXACT.x.clone().requires_grad_(), torch.ones((), dtype=torch.float64, requires_grad=True)
            gradient = torch.autograd.grad(call(result, backend, x=x), x, cotangent, create_graph=True)[0]
            if result in LOSSES and backend == "cpu":
                with pytest.raises(sk.NotProvided, match="double backward"):
                    gradient.sum().backward()
                break
            found.append(torch.autograd.grad(gradient.sum(), cotangent)[0])
        else:
            assert_within_rule(result, *found)


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another term"])
@pytest.mark.parametrize("result", ["loss", "jvp"])
def test_the_reference_computes_double_backward(result, beside):
    parameters = list(EXACT.student.parameters())

    def written(x):
        if result == "loss":
            return written_out(EXACT.student, x, EXACT.y, EXACT.jacobian, V.double(), (1.0, 1.0))
        zero = torch.zeros_like(EXACT.jacobian)
        return P * N * O * written_out(EXACT.student, x, EXACT.y, zero, V.double(), (0.0, 1.0))

    got = penalty(lambda x: call(result, "reference", x=x), EXACT.x, parameters, beside)
    for i, (g, e) in enumerate(zip(got, penalty(written, EXACT.x, parameters, beside), strict=True)):
        assert_within_rule(f"second derivative {i}", g, e)
