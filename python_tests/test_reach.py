"""Any function by the reference: right in transforms and in forward mode; no graph is never a silent zero."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import sobolev_kernels as sk
from sobolev_kernels.testing import assert_within_rule

N, D, O = 5, 3, 2
torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(D, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, O)).double()
PARAMETERS = {name: parameter.detach().clone() for name, parameter in NET.named_parameters()}
X, V, U = (torch.randn(*shape, dtype=torch.float64) for shape in ((N, D), (2, N, D), (2, N, O)))
VALUES, JACOBIAN, HESSIAN = (torch.randn(N, O, *more, dtype=torch.float64) for more in ((), (D,), (D, D)))
FIRST = sk.Targets(values=VALUES, jacobian=JACOBIAN)
SECOND = sk.Targets(values=VALUES, jacobian=JACOBIAN, hessian=HESSIAN)
TEACHER = sk.Targets(teacher=lambda x: x[:, :O].sin() * x[:, 1:])
DIRECTIONS, COTANGENTS = sk.Directions.given(V), sk.Cotangents.given(U)
# Scalars of a student.
RESULTS = {
    "directions": lambda f, x: sk.sobolev_loss(f, x, FIRST, directions=DIRECTIONS),
    "cotangents": lambda f, x: sk.sobolev_loss(f, x, FIRST, cotangents=COTANGENTS),
    "order 2": lambda f, x: sk.sobolev_loss(f, x, SECOND, directions=DIRECTIONS, order=2),
    "seeded": lambda f, x: sk.sobolev_loss(f, x, FIRST, directions=sk.Directions.sphere(2, seed=1)),
    "per sample": lambda f, x: sk.sobolev_loss(f, x, FIRST, derivatives="exact", reduction="none").prod(),
    "teacher": lambda f, x: sk.sobolev_loss(f, x, TEACHER, cotangents=COTANGENTS),
    "differential-ml": lambda f, x: sk.sobolev_loss(f, x, FIRST, derivatives="exact", weights="differential-ml"),
    "jvp": lambda f, x: sk.jvp(f, x, V)[1].square().sum(),
    "vjp": lambda f, x: sk.vjp(f, x, U)[1].square().sum(),
    "jet": lambda f, x: sk.jet(f, x, V)[2].square().sum(),
    "laplacian": lambda f, x: sk.laplacian(f, x)[1].square().sum(),
    "hvp": lambda f, x: sk.hvp(f, x, V, V.flip(0))[1].square().sum(),
}


def with_parameters(parameters):
    return lambda x: functional_call(NET, parameters, (x,))


def of_parameters(name):
    return lambda parameters: RESULTS[name](with_parameters(parameters), X)


def of_inputs(name):
    return lambda x: RESULTS[name](NET, x)


def gradients(f, tensors):
    """By torch.autograd."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    found = torch.autograd.grad(f(leaves), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def assert_same(got, expected):
    for name in expected:
        assert_within_rule(name, got[name], expected[name], expected[name] + 1e-12 * expected[name].abs().max())


@pytest.mark.parametrize("name", RESULTS)
def test_transforms_over_parameters(name):
    f = of_parameters(name)
    expected = gradients(f, PARAMETERS)
    assert_same(grad(f)(PARAMETERS), expected)
    assert_same(jacrev(f)(PARAMETERS), expected)
    ensemble = {key: torch.stack([p, 0.5 * p + 0.1]) for key, p in PARAMETERS.items()}
    values, of_all = vmap(f)(ensemble), vmap(grad(f))(ensemble)
    for i in range(2):
        one = {key: p[i] for key, p in ensemble.items()}
        assert_same({"value": values[i]}, {"value": f(one).detach()})
        assert_same({key: p[i] for key, p in of_all.items()}, gradients(f, one))


@pytest.mark.parametrize("name", RESULTS)
def test_transforms_over_inputs(name):
    f = of_inputs(name)
    expected = gradients(lambda tensors: f(tensors["x"]), {"x": X})
    assert_same({"x": grad(f)(X)}, expected)
    assert_same({"x": jacfwd(f)(X)}, expected)
    with torch.no_grad():
        assert_same({"x": grad(f)(X)}, expected)


@pytest.mark.parametrize("name", ["directions", "laplacian"])
def test_second_derivatives_by_torch_func(name):
    f = lambda bias: of_parameters(name)(PARAMETERS | {"3.bias": bias, "0.bias": bias.sum() * PARAMETERS["0.bias"]})  # noqa: E731
    bias = PARAMETERS["3.bias"]
    assert_same({"bias": hessian(f)(bias)}, {"bias": torch.autograd.functional.hessian(f, bias)})


def test_losses_of_each_sample_and_each_member_of_an_ensemble():
    def one(parameters, x, y, jacobian):
        targets = sk.Targets(values=y[None], jacobian=jacobian[None])
        return sk.sobolev_loss(with_parameters(parameters), x[None], targets, derivatives="exact")

    ensemble = {key: torch.stack([p, 0.5 * p + 0.1]) for key, p in PARAMETERS.items()}
    got = vmap(vmap(one, (None, 0, 0, 0)), (0, None, None, None))(ensemble, X, VALUES, JACOBIAN)
    for i in range(2):
        member = with_parameters({key: p[i] for key, p in ensemble.items()})
        expected = sk.sobolev_loss(member, X, FIRST, derivatives="exact", reduction="none")
        assert_same({"losses": got[i]}, {"losses": expected})


@pytest.mark.parametrize("gradients_on", [True, False])
@pytest.mark.parametrize("name", RESULTS)
def test_forward_mode(name, gradients_on):
    """Of x that asks for a gradient and of one that does not; of parameters; and by torch.func.jvp."""
    along_x = (gradients(lambda tensors: of_inputs(name)(tensors["x"]), {"x": X})["x"] * V[0]).sum()
    direction = {key: torch.randn_like(p) for key, p in PARAMETERS.items()}
    slopes = gradients(of_parameters(name), PARAMETERS)
    along_parameters = sum((slopes[key] * direction[key]).sum() for key in direction)
    with torch.set_grad_enabled(gradients_on), forward_ad.dual_level():
        for x in (X, X.clone().requires_grad_()):
            got = forward_ad.unpack_dual(of_inputs(name)(forward_ad.make_dual(x, V[0]))).tangent
            assert_same({"x": got.detach()}, {"x": along_x})
        duals = {key: forward_ad.make_dual(p, direction[key]) for key, p in PARAMETERS.items()}
        got = forward_ad.unpack_dual(of_parameters(name)(duals)).tangent
        assert_same({"parameters": got.detach()}, {"parameters": along_parameters})
    with torch.set_grad_enabled(gradients_on):
        assert_same({"x": jvp(of_inputs(name), (X,), (V[0],))[1].detach()}, {"x": along_x})
        got = jvp(of_parameters(name), (PARAMETERS,), (direction,))[1]
        assert_same({"parameters": got.detach()}, {"parameters": along_parameters})


HEAD, STUDENT = nn.Linear(O, O).double(), sk.MLP(D, O, width=4).double()


class DetachedSlope(torch.autograd.Function):
    """x², of which the backward holds x as a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach().clone()
        return x.square()

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.x * g


class DetachedGradient(DetachedSlope):
    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.x * g.detach()


def without_gradients(f, mode=torch.no_grad):
    return lambda x: mode()(f)(x)


CUT = {
    "detach": lambda x: NET(x.clone().detach().requires_grad_()),
    "data": lambda x: NET(x.data),
    "no_grad": without_gradients(NET),
    "inference_mode": without_gradients(NET, torch.inference_mode),
    "trunk under no_grad": lambda x: HEAD(without_gradients(NET)(x)),
    "numpy": lambda x: torch.from_numpy(x.detach().numpy()[:, :O] ** 2),
    "numpy below a layer": lambda x: HEAD(torch.from_numpy(x.detach().numpy()[:, :O] ** 2)),
    "item": lambda x: torch.tensor([[n.sin().item() for n in row[:O]] for row in x], dtype=x.dtype),
    "dropout of a detached net": lambda x: nn.functional.dropout(NET(x.detach())),
}
CALLS = {
    "jvp": lambda f, x: sk.jvp(f, x, V)[1],
    "vjp": lambda f, x: sk.vjp(f, x, U)[1],
    "jet": lambda f, x: sk.jet(f, x, V)[2],
    "laplacian": lambda f, x: sk.laplacian(f, x)[1],
    "loss": lambda f, x: sk.sobolev_loss(f, x, FIRST, derivatives="exact"),
    "loss along directions": lambda f, x: sk.sobolev_loss(f, x, FIRST, directions=DIRECTIONS),
    "loss of order 2": lambda f, x: sk.sobolev_loss(f, x, SECOND, directions=DIRECTIONS, order=2),
    "teacher": lambda f, x: sk.sobolev_loss(STUDENT, x, sk.Targets(teacher=f), directions=DIRECTIONS),
}
MODES = {"gradients": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@pytest.mark.filterwarnings("ignore:teacher. he gives other values:sobolev_kernels.SobolevWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", CUT)
def test_a_graph_that_does_not_reach_the_inputs_is_refused(name, call, mode):
    generator = torch.get_rng_state()
    with MODES[mode](), pytest.raises(sk.NotProvided, match="silent zero; look for a forward that detaches"):
        CALLS[call](CUT[name], X)
    if name != "dropout of a detached net":
        assert torch.equal(torch.get_rng_state(), generator)


CONSTANT = {
    "constant": lambda x: torch.ones(N, O).double(),
    "learned constant": lambda x: HEAD.bias.expand(N, O),
    "times 0": lambda x: x[:, :O] * 0,
    "step": lambda x: (x > 0).double()[:, :O],
    "floor": lambda x: x.floor()[:, :O],
    "dropout of a constant": lambda x: nn.functional.dropout(torch.ones(N, O).double()),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CONSTANT)
def test_constant_functions_have_zeros(name, mode):
    with MODES[mode]():
        for call in ("jvp", "vjp", "jet", "laplacian"):
            assert not CALLS[call](CONSTANT[name], X).any()
        for call in ("loss", "loss of order 2", "teacher"):
            assert CALLS[call](CONSTANT[name], X) > 0


FLAT = {
    "function": lambda x: x @ JACOBIAN[0].T,
    "module": nn.Sequential(nn.Flatten(), nn.Linear(D, O)).double(),
    "frozen": nn.Sequential(nn.Flatten(), nn.Linear(D, O)).double().requires_grad_(False),
    "ReLU by a mask": lambda x: (lambda z: z * (z > 0))(x @ JACOBIAN[0].T),
    "maximum": lambda x: torch.stack([x[:, :O], x[:, 1:], -x[:, :O]]).amax(0),
}


@pytest.mark.parametrize("name", FLAT)
def test_what_is_linear_has_no_second_derivative(name):
    x = X.clone().requires_grad_()
    jacobian = torch.stack([torch.autograd.grad(FLAT[name](x)[:, o].sum(), x)[0] for o in range(O)], 1)
    expected = torch.einsum("nod,pnd->pno", jacobian, V)
    for inputs in (X, x):
        assert not CALLS["jet"](FLAT[name], inputs).any()
        assert_within_rule("tangents", CALLS["jvp"](FLAT[name], inputs), expected)
        assert CALLS["loss along directions"](FLAT[name], inputs) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kinks_are_not_taken_for_a_slope(dtype):
    """Of many units some have theirs within a step of the probe."""
    torch.manual_seed(0)
    weights = torch.randn(3, 200, dtype=dtype), torch.randn(200, 2, dtype=dtype)
    student = lambda x: (lambda z: z * (z > 0))(x @ weights[0]) @ weights[1]  # noqa: E731
    x = torch.randn(200, 3, dtype=dtype, requires_grad=True)
    assert sk.jvp(student, x, sk.Directions.basis())[1].any()
    assert not sk.jet(student, x, sk.Directions.basis())[2].any()


@pytest.mark.filterwarnings("ignore:student. .* the reference takes its:sobolev_kernels.SobolevWarning")
@pytest.mark.parametrize("function", [DetachedSlope, DetachedGradient])
def test_a_backward_that_is_no_part_of_the_graph_is_refused(function):
    student = lambda x: function.apply(x)[:, :O]  # noqa: E731
    for call in ("jet", "laplacian", "loss of order 2"):
        with pytest.raises(sk.NotProvided, match="silent zero"):
            CALLS[call](student, X)
    for call in ("jvp", "vjp", "loss"):
        with pytest.raises(sk.NotProvided, match="silent zero"):
            CALLS[call](student, X.clone().requires_grad_())
    # the first derivative alone is right
    assert_within_rule("gradients", CALLS["vjp"](student, X), torch.nn.functional.pad(2 * X[:, :O] * U, (0, 1)))


def test_inference_mode_of_one_output():
    student = lambda x: NET(x)[:, :1]  # noqa: E731
    targets = sk.Targets(values=torch.zeros(N, 1).double(), jacobian=torch.zeros(N, 1, D).double())
    calls = {
        "jvp": lambda: sk.jvp(student, X, sk.Directions.basis())[1],
        "vjp": lambda: sk.vjp(student, X, sk.Cotangents.basis())[1],
        "loss": lambda: sk.sobolev_loss(student, X, targets, derivatives="exact"),
    }
    for name, call in calls.items():
        expected = call()
        with torch.inference_mode():
            assert_within_rule(name, call(), expected)


@pytest.mark.parametrize("call", CALLS)
def test_inference_mode(call):
    expected = CALLS[call](NET, X)
    with torch.inference_mode():
        for x in (X, X.clone()):
            got = CALLS[call](lambda x: NET(x), x)
            assert not got.requires_grad
            assert_within_rule(call, got, expected)
    with torch.inference_mode(), pytest.raises(sk.NotProvided, match=r"inference mode: .* use no_grad"):
        held = torch.randn(D, O).double()
        CALLS[call](lambda x: torch.matrix_exp((x @ held)[:, :, None].expand(-1, O, O))[:, 0], X)


@pytest.mark.parametrize("student", [lambda x: x.sin()[:, :O], NET.requires_grad_(True)])
@pytest.mark.parametrize("call", CALLS)
def test_a_result_asks_for_a_gradient_where_something_in_it_does(student, call):
    if call != "teacher":
        assert CALLS[call](student, X).requires_grad == isinstance(student, nn.Module)
        assert CALLS[call](student, X.clone().requires_grad_()).requires_grad
        with torch.no_grad():
            assert not CALLS[call](student, X.clone().requires_grad_()).requires_grad


# dynamo itself, where a tensor goes on to what follows a break of its graph
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("call", ["vjp", "loss along directions"])
def test_torch_compile_around_any_student(call):
    """With its graph broken, and what is differentiated outside of it."""
    torch._dynamo.reset()
    step = torch.compile(lambda x: CALLS[call](NET, x), backend="aot_eager")
    results = []
    for f in (step, lambda x: CALLS[call](NET, x)):
        x = X.clone().requires_grad_()
        results.append(torch.autograd.grad(f(x).square().sum(), (x, *NET.parameters()), materialize_grads=True))
    for got, expected in zip(*results, strict=True):
        assert_within_rule("gradient", got, expected)


def test_a_teacher_in_a_whole_graph():
    """Its norms are written out; and one whose graph does not reach its inputs is refused."""
    loss = CALLS["teacher"]
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: loss(NET, x), backend="aot_eager", fullgraph=True)
    assert_within_rule("loss", compiled(X), loss(NET, X))
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"silent zero|Observed exception"):
        torch.compile(lambda x: loss(CUT["data"], x), backend="eager", fullgraph=True)(X)
