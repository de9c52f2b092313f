"""What enters the kernels: read right, taken by the reference, or refused in words; nothing crashes.

What would end the interpreter, or changes it for all, runs in a process of its own.
"""

import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.masked import masked_tensor

import sobolev_kernels as sk
from sobolev_kernels import ops
from sobolev_kernels.backends import core
from sobolev_kernels.problem import DERIVATIVES, DERIVATIVES_GRADIENTS
from sobolev_kernels.student import recognise
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.problems import Shape, data, random
from sobolev_kernels.testing.rule import ANOTHER_WAY

SHAPE = Shape(6, 3, 5, 1, 2, 2, "all sizes differ where a mistake could hide")
ROOT = Path(__file__).resolve().parents[1]
NUMBERS = data(SHAPE)
X, Y, J, H, V = NUMBERS.x, NUMBERS.y, NUMBERS.jacobian, NUMBERS.hessian, random(2, 6, 3)


def run(script: str) -> None:
    """In a process of its own."""
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


# How a call is told what it computes; each operand by its name.
OPERANDS = {
    "x": X, "values": Y, "jacobian": J, "hessian": H, "given": V, "sample_weight": random(6).abs(),
    "output_weight": random(2).abs(), "input_scale": random(3).abs(), "weight": random(5, 3), "bias": random(5),
}  # fmt: skip


def loss_of(operands: dict[str, torch.Tensor], backend: str | None = None, **settings) -> torch.Tensor:
    student = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(random(*parameter.shape))
    for name in ("weight", "bias"):
        delattr(student[0], name)
        setattr(student[0], name, operands[name])
    targets = sk.Targets(**{name: operands[name] for name in ("values", "jacobian", "hessian")})
    tensors = {name: operands[name] for name in ("sample_weight", "output_weight", "input_scale")}
    directions = sk.Directions.given(operands["given"])
    return sk.sobolev_loss(
        student, operands["x"], targets, directions=directions, order=2, backend=backend, **tensors, **settings
    )


def negative(tensor):
    """The same numbers, kept with the other sign."""
    return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag


def askew(tensor):
    """The same numbers, at an address that is no multiple of their size."""
    raw = torch.frombuffer(bytearray(tensor.nbytes + 1), dtype=tensor.dtype, offset=1).view(tensor.shape)
    return raw.copy_(tensor)


def spread(tensor):
    """The same numbers, far from each other."""
    return tensor.new_full((2, *tensor.shape, 3), torch.nan)[1, ..., 1].copy_(tensor)


@pytest.mark.parametrize("way", [negative, askew, spread], ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", OPERANDS)
def test_the_same_numbers_however_they_are_kept(name, way):
    expected = loss_of(OPERANDS, "cpu")
    kept = way(OPERANDS[name])
    assert torch.equal(kept, OPERANDS[name])
    assert torch.equal(loss_of(OPERANDS | {name: kept}, "cpu"), expected)


@pytest.mark.parametrize("name", ["y", "derivatives"])
def test_cotangents_however_they_are_kept(name):
    place = ("y", "derivatives").index(name)
    numbers = data(SHAPE)
    results = []
    for way in (torch.clone, negative, spread):
        outputs = sk.jvp(numbers.student, X, V, backend="cpu")
        cotangent = way(random(*outputs[place].shape))
        results.append(torch.autograd.grad(outputs[place], tuple(numbers.student.parameters())[:2], cotangent))
    for expected, *others in zip(*results, strict=True):
        assert all(torch.equal(expected, other) for other in others)


def shrunk(tensor):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(4)
    return tensor


def freed(tensor):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def nested(tensor):
    return torch.nested.nested_tensor(list(tensor), layout=torch.jagged)


def masked(tensor):
    return masked_tensor(tensor, torch.ones_like(tensor, dtype=torch.bool))


MADE = {
    "sparse": torch.Tensor.to_sparse,
    "csr": torch.Tensor.to_sparse_csr,
    "mkldnn": torch.Tensor.to_mkldnn,
    "nested": nested,
    "meta": lambda t: t.to("meta"),
    "shrunk": shrunk,
    "freed": freed,
    "functional": torch._to_functional_tensor,
    "fake": lambda t: FakeTensorMode().from_tensor(t),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.quint8),
    "float64": torch.Tensor.double,
}
WORDS = {
    "x": "inputs", "given": "directions", "weight": "student", "bias": "student",
    "jacobian": "jacobian|the target derivative", "hessian": "hessian|the target second",
}  # fmt: skip


CAST = ("values", "jacobian", "hessian")  # to the inputs' dtype
# Those that torch makes: of one dimension there is no CSR and no nested tensor.
UNREADABLE = [(n, k) for n, t in OPERANDS.items() for k in MADE if t.dim() > 1 or k not in ("csr", "nested")]
UNREADABLE = [(n, k) for n, k in UNREADABLE if not (k == "float64" and n in CAST)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name, kind", UNREADABLE)
def test_what_cannot_be_read_is_refused_in_words(name, kind):
    tensor = MADE[kind](OPERANDS[name])
    # other arguments are compared with the inputs, and a scale of no numbers is multiplied first
    named = f"{WORDS.get(name, name)}|student" if name == "x" else WORDS.get(name, name)
    named = "inputs|input_scale" if name == "input_scale" else named
    with pytest.raises((ValueError, TypeError), match=f"^({named}).*: expected .*, got "):
        loss_of(OPERANDS | {name: tensor})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", ["jvp", "hvp", "tensor", "explain"])
@pytest.mark.parametrize("kind", ["sparse", "csr", "mkldnn", "nested", "masked"])
def test_derivatives_refuse_them_too(kind, call):
    odd = (masked if kind == "masked" else MADE[kind])(torch.ones(2, 3))
    calls = {
        "jvp": lambda: sk.jvp(NUMBERS.student, X, odd),
        "hvp": lambda: sk.hvp(NUMBERS.student, X, odd, odd),
        "tensor": lambda: sk.Directions.sphere(2).tensor(odd),
        "explain": lambda: sk.explain(NUMBERS.student, odd),
    }
    with pytest.raises(ValueError, match=r"^(directions|v|inputs): expected a (dense tensor|tensor without a mask)"):
        calls[call]()


@pytest.mark.filterwarnings("ignore")
def test_masked_targets_are_refused():
    with pytest.raises(ValueError, match="values: expected a tensor without a mask"):
        loss_of(OPERANDS | {"values": masked(Y)})


def test_on_meta_there_are_shapes_and_no_numbers():
    on_meta = {name: tensor.to("meta") for name, tensor in OPERANDS.items() if name not in ("weight", "bias")}
    student = sk.MLP(3, 2, width=5, device="meta")
    targets = sk.Targets(values=on_meta["values"], jacobian=on_meta["jacobian"])
    assert sk.sobolev_loss(student, on_meta["x"], targets).shape == ()
    assert sk.laplacian(student, on_meta["x"])[1].shape == (6, 2)
    with pytest.raises(ValueError, match=r"inputs: expected numbers, which check_finite could look at, got .* on meta"):
        sk.sobolev_loss(student, on_meta["x"], targets, check_finite=True)


# Of a Linear with 5 outputs and 3 inputs.
BROADCAST = {"one": (1,), "none": (), "a row": (1, 5), "a row of one": (1, 1), "for each sample": (6, 5)}


def with_part(name, tensor, at=0):
    student = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    setattr(student[at], name, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
    return student


@pytest.mark.parametrize("shape", BROADCAST.values(), ids=BROADCAST)
def test_a_bias_that_torch_broadcasts(shape):
    """Silently read as one of n_out numbers it was wrong, and 499 numbers were written past its gradient's end."""
    student = with_part("bias", random(*shape)).double()
    assert recognise(student).reason == f"a Linear has a bias of {list(shape)} for 5 outputs"
    assert_as_autograd(student)
    with pytest.raises(NotImplementedError, match=re.escape(f"a refusal: a Linear has a bias of {list(shape)} for 5")):
        sk.jvp(student, X.double(), V.double(), backend="cpu")


def assert_as_autograd(student: nn.Module, *others: torch.Tensor) -> None:
    """Tangents and all gradients of a float64 student, by the call that chooses its backend and by torch.func."""
    x, v = X.double().requires_grad_(), V[0].double()
    parameters = (x, *student.parameters(), *others)
    results = []
    for y, tangent in (sk.jvp(student, x, v[None]), torch.func.jvp(student, (x,), (v,))):
        tangent = tangent.reshape(y.shape)
        gradients = torch.autograd.grad(y.sin().sum() + tangent.square().sum(), parameters, retain_graph=True)
        results.append((y, tangent, *gradients))
    for got, expected in zip(*results, strict=True):
        assert_within_rule("by torch.func", got, expected)


LINEARS = {
    "a weight of one dimension": ("weight", torch.ones(3), r"the weight of a Linear to be of shape \[n_out, n_in\]"),
    "of three": ("weight", torch.ones(1, 5, 3), r"the weight of a Linear to be of shape \[n_out, n_in\]"),
    "of none": ("weight", torch.ones(()), r"the weight of a Linear to be of shape \[n_out, n_in\]"),
    "another bias": ("bias", torch.ones(4), r"the bias of a Linear to be of shape \[5\], got a tensor float32 \[4\]"),
    "a bias of three": ("bias", torch.ones(1, 1, 5), r"the bias of a Linear to be of shape \[5\], got a tensor"),
    "sparse": ("weight", torch.ones(5, 3).to_sparse(), "the weight of a Linear to be a dense tensor, got a sparse_coo"),
    "sparse bias": ("bias", torch.ones(5).to_sparse(), "the bias of a Linear to be a dense tensor, got a sparse_coo"),
}


@pytest.mark.parametrize("backend", [None, "cpu", "reference"])
@pytest.mark.parametrize("name, tensor, words", LINEARS.values(), ids=LINEARS)
def test_what_no_layer_can_be_made_of(name, tensor, words, backend):
    student = with_part(name, tensor)
    for call in (
        lambda: sk.jvp(student, X, V, backend=backend),
        lambda: sk.sobolev_loss(NUMBERS.student, X, sk.Targets(teacher=student), backend=backend),
    ):
        with pytest.raises((ValueError, TypeError), match=f"(student|teacher): expected {words}"):
            call()


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("odd", [None, 3.0, "gone"])
def test_a_layer_without_its_tensors(name, odd):
    student = nn.Sequential(nn.Linear(3, 5))
    delattr(student[0], name)
    if odd != "gone":
        setattr(student[0], name, odd)
    if name == "bias" and odd is None:
        assert not isinstance(recognise(student).reason, str) or recognise(student).reason == ""
        return
    with pytest.raises(TypeError, match=f"student: expected the {name} of a Linear to be a dense tensor, got "):
        sk.jvp(student, X, V)


@pytest.mark.parametrize("names", [("weight",), ("bias",), ("weight", "bias")], ids=str)
def test_parameters_that_another_function_made(names):
    """Hypernetworks and MAML: tensors with a graph, in the place of parameters."""
    student = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    sources = []
    for name in names:
        source = getattr(student[0], name).detach().clone().requires_grad_()
        delattr(student[0], name)
        setattr(student[0], name, 2 * source.sin())
        sources.append(source)
    assert recognise(student).reason == ""
    assert_as_autograd(student, *sources)


def test_a_tensor_goes_before_the_parameter_of_its_name():
    student = nn.Sequential(nn.Linear(3, 2)).double()
    vars(student[0])["weight"] = torch.ones(2, 3, dtype=torch.float64)
    y, _ = sk.jvp(student, X.double(), V.double())
    assert_within_rule("y", y, student(X.double()))


class Scaled(torch.Tensor):
    """A tensor whose numbers are not all there is to it."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        return 2 * result if function is nn.functional.linear else result


def test_a_subclass_computes_in_its_own_way():
    student = nn.Sequential(nn.Linear(3, 2, bias=False)).double()
    weight = student[0].weight.detach()
    del student[0].weight
    student[0].weight = weight.as_subclass(Scaled)
    assert recognise(student).reason == "the weight of a Linear is a Scaled"
    y, tangents = sk.jvp(student, X.double(), V.double())
    assert_within_rule("y", torch.Tensor(y), 2 * X.double() @ weight.T)
    assert_within_rule("tangents", torch.Tensor(tangents), 2 * V.double() @ weight.T)


def learnable(row, value):
    module = {"omega": lambda: sk.Sine(1.5), "alpha": nn.ELU, "beta": nn.Softplus, "negative_slope": nn.LeakyReLU}[
        row
    ]()
    setattr(module, row, value)
    return nn.Sequential(nn.Linear(3, 5), module, nn.Linear(5, 2)).double()


GRADIENT = {
    "parameter": lambda: nn.Parameter(torch.tensor(1.5, dtype=torch.float64)),
    "tensor": lambda: torch.tensor(1.5, dtype=torch.float64, requires_grad=True) * 1,
    "for each feature": lambda: nn.Parameter(torch.linspace(1, 2, 5, dtype=torch.float64)),
}


@pytest.mark.parametrize("make", GRADIENT.values(), ids=GRADIENT)
def test_a_learnable_frequency_has_its_gradient(make):
    omega = make()
    student = learnable("omega", omega)
    assert recognise(student).reason.startswith("Sine.omega is a tensor float64 [")
    assert_as_autograd(student, *([] if isinstance(omega, nn.Parameter) else [omega]))
    # its forward is a chain of layers all the same, whose weights are multiplied by it
    fused, by_autograd = (sk.jvp(student, X.double(), V.double(), backend=name)[1] for name in ("cpu", "reference"))
    assert torch.allclose(fused, by_autograd, **ANOTHER_WAY)


@pytest.mark.parametrize(
    "odd", [*GRADIENT.values(), lambda: "1.5e", lambda: torch.ones(1)], ids=[*GRADIENT, "a string", "[1]"]
)
@pytest.mark.parametrize("row", ["alpha", "beta", "negative_slope"])
def test_a_number_that_is_none_is_refused_where_torch_wants_one(row, odd):
    student = learnable(row, odd())
    with pytest.raises(TypeError, match=rf"student: expected \w+.{row} to be a number, got "):
        sk.jvp(student, X.double(), V.double())


@pytest.mark.parametrize("number", [torch.tensor(1.5), torch.tensor(2), nn.Parameter(torch.tensor(1.5), False), 1.5])
def test_a_tensor_without_gradient_is_a_number(number):
    student = recognise(learnable("omega", number))
    assert student.activations[0].parameters == (float(number),)


def test_a_parameter_for_each_feature_is_no_number():
    student = learnable("omega", torch.linspace(1, 2, 5, dtype=torch.float64))
    assert recognise(student).reason == "Sine.omega is a tensor float64 [5] on cpu, not a number"
    assert_as_autograd(student)


@contextmanager
def global_hook(register, hook):
    handle = register(hook)
    try:
        yield
    finally:
        handle.remove()


EVERYWHERE = {
    "forward": (nn.modules.module.register_module_forward_hook, lambda module, given, y: 2 * y),
    "before forward": (nn.modules.module.register_module_forward_pre_hook, lambda module, given: (2 * given[0],)),
    "backward": (nn.modules.module.register_module_full_backward_hook, lambda module, dx, dy: None),
    "before backward": (nn.modules.module.register_module_full_backward_pre_hook, lambda module, dy: None),
}


@pytest.mark.filterwarnings("ignore:student.*hooks of its backward:sobolev_kernels.SobolevWarning")
@pytest.mark.parametrize("register, hook", EVERYWHERE.values(), ids=EVERYWHERE)
def test_hooks_of_all_modules_are_called(register, hook):
    student = NUMBERS.to(torch.float64).student
    assert recognise(student).reason == ""
    with global_hook(register, hook):
        assert recognise(student).reason == "hooks are registered for all modules"
        y, _ = sk.jvp(student, X.double(), V.double())
        assert_within_rule("y", y, student(X.double()))
    assert recognise(student).reason == ""


PATCHED = [
    (nn.Tanh, "forward"), (nn.Linear, "forward"), (nn.Sequential, "forward"), (nn.Identity, "forward"),
    (sk.MLP, "forward"), (nn.Tanh, "__call__"), (nn.Linear, "__call__"), (nn.Module, "__call__"),
    (nn.Module, "_call_impl"),
]  # fmt: skip


@pytest.mark.parametrize("kind, method", PATCHED, ids=lambda value: getattr(value, "__name__", value))
def test_a_class_that_was_patched_is_what_it_was_patched_to(kind, method, monkeypatch):
    student = nn.Sequential(sk.MLP(3, 2, width=5), nn.Identity()).double()
    original = getattr(kind, method)
    monkeypatch.setattr(kind, method, lambda self, *given, **named: 3 * original(self, *given, **named))
    assert recognise(student).reason.endswith("has its forward or its call replaced")
    y, _ = sk.jvp(student, X.double(), V.double())
    assert_within_rule("y", y, student(X.double()))
    monkeypatch.undo()
    assert recognise(student).reason == ""


def test_a_patch_from_before_the_import_is_seen():
    run(
        "import functools, torch; from torch import nn\n"
        "original = nn.Tanh.forward\n"
        "nn.Tanh.forward = functools.wraps(original)(lambda self, x: 2 * original(self, x))\n"
        "nn.SiLU.forward = lambda self, x: x\n"
        "import sobolev_kernels as sk\n"
        "from sobolev_kernels.student import recognise\n"
        "for name in ('tanh', 'silu'): assert 'replaced' in recognise(sk.MLP(2, 1, activation=name)).reason\n"
        "assert not recognise(sk.MLP(2, 1, activation='gelu')).reason\n"
    )


ASKED = ops.compute


def entered(call):
    """The problem and the operands that a call hands to its backend."""
    kept = []
    ops.compute = lambda problem, operands: (kept.append((problem, operands)), ASKED(problem, operands))[1]
    try:
        call()
    finally:
        ops.compute = ASKED
    return kept[0]


def wrong_shapes():
    problem, operands = entered(lambda: loss_of(OPERANDS | {"weight": nn.Parameter(OPERANDS["weight"])}, "cpu"))
    shorter = {name: t[:-1] for name, t in operands._asdict().items() if isinstance(t, torch.Tensor) and name != "x"}
    for name, tensor in shorter.items():
        yield name, problem, operands._replace(**{name: tensor})
    yield "student: expected 4 parameters", problem, operands._replace(parameters=operands.parameters[:-1])
    for i, tensor in enumerate(operands.parameters):
        parameters = [*operands.parameters[:i], tensor[:-1], *operands.parameters[i + 1 :]]
        yield "student: a parameter", problem, operands._replace(parameters=parameters)
    yield "inputs", problem, operands._replace(x=X[:, :2])
    yield "inputs", problem, operands._replace(x=X[0])
    yield "inputs", replace(problem, device="cuda"), operands
    yield "seed", problem, operands._replace(given=None)
    yield "seed", problem, operands._replace(given=None, seed=torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize(
    "words, problem, operands", [*wrong_shapes()], ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_op_refuses_what_does_not_fit_its_problem(words, problem, operands):
    words = {"given": "directions", "derivative": "the target derivative", "second": "the target second"}.get(
        words, words
    )
    *tensors, weights = operands
    with pytest.raises(ValueError, match=f"^{words}"):
        torch.ops.sobolev_kernels.mlp_sobolev(*tensors, list(weights), problem.to_string())


def test_cotangents_of_another_shape_are_refused():
    problem, operands = entered(lambda: sk.jvp(NUMBERS.student, X, V, backend="cpu"))
    assert problem.result == DERIVATIVES
    problem = replace(problem, result=DERIVATIVES_GRADIENTS, gradients=True)
    with pytest.raises(ValueError, match=r"^the cotangent of y: expected float32 \[6, 2\] on cpu"):
        ops.compute(problem, operands._replace(values=Y[:, :1]))


def test_a_sparse_cotangent_is_refused():
    y, _ = sk.jvp(NUMBERS.student, X, V, backend="cpu")
    with pytest.raises(ValueError, match=r"the cotangent of y: expected .*, got a sparse_coo tensor"):
        y.backward(torch.ones_like(y).to_sparse())


def test_the_core_refuses_sizes_that_do_not_fit():
    layer, sizes = lambda n_in, n_out: (n_in, n_out, (0,), core.SOMEWHERE, None, None, None), (3, 2, 0, 3)
    refused = {
        "a layer must take what the one before gives": ([layer(4, 2)], sizes, 1),
        "the last layer must give O outputs": ([layer(3, 5)], sizes, 1),
        "a layer must have a weight": ([(3, 2, (0,), None, None, None, None)], sizes, 1),
        "sizes must not be negative, nor W more than D": ([layer(3, 2)], (3, 2, 0, 4), 1),
        "order must be 1 or 2": ([layer(3, 2)], sizes, 3),
        "a step must have inputs": ([layer(3, 2)], sizes, 1),
    }
    for words, (layers, each, order) in refused.items():
        bare = core._C.Step(0, 6, *each, order)
        bare.layers(layers)
        bare.plan(0, 64, 1, False, False, False, 1)
        with pytest.raises(ValueError, match=words):
            core._C.mlp_sobolev(bare)


def test_a_bias_of_one_number_ends_no_process():
    """The heap was corrupted: of 500 outputs, 499 gradients were written behind the one."""
    run(
        "import torch, sobolev_kernels as sk; from torch import nn\n"
        "net = nn.Sequential(nn.Linear(3, 500), nn.Tanh(), nn.Linear(500, 1))\n"
        "net[0].bias = nn.Parameter(torch.ones(1)); x = torch.rand(50, 3)\n"
        "targets = sk.Targets(values=torch.zeros(50, 1), jacobian=torch.zeros(50, 1, 3))\n"
        "for _ in range(20): sk.sobolev_loss(net, x, targets, derivatives='exact').backward()\n"
        "assert net[0].bias.grad.shape == (1,)\n"
    )


def test_a_basis_takes_the_memory_of_its_numbers():
    """1.6 GB of numbers, and 51 GB of frames were asked for that only orthonormal ones need."""
    run(
        "import resource, torch, sobolev_kernels as sk\n"
        "def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = used(); v = sk.Directions.basis().tensor(torch.zeros(1, 4000)); assert v.shape == (4000, 1, 4000)\n"
        "assert used() - before < 1.5 * v.nbytes / 1024, used() - before\n"
        "before = used(); v = sk.Directions.basis().tensor(torch.zeros(1, 4000, device='meta'))\n"
        "assert used() - before < 100_000, used() - before\n"
        "from sobolev_kernels.math.directions import draw\n"
        "v = draw('basis', 0, 0, 4000, 1, 4000, False, 1.0, torch.float32, torch.device('cpu'))\n"
        "assert used() - before < 1.5 * v.nbytes / 1024, used() - before\n"
    )


DEFAULTS = """
import torch
torch.set_default_device("meta")
torch.set_default_dtype(torch.bfloat16)
import sobolev_kernels as sk
made = {"device": "cpu", "dtype": torch.float32}
student, teacher = (sk.MLP(3, 2, width=8, **made) for _ in range(2))
other = torch.nn.Sequential(student, torch.nn.LayerNorm(2, **made))
x = torch.rand(6, 3, **made)
tensors = {"values": torch.rand(6, 2, **made), "jacobian": torch.rand(6, 2, 3, **made)}
hessian = torch.rand(6, 2, 3, 3, **made)
def drawn(kind):
    yield kind.basis(unbiased=True)
    for name in ("sphere", "normal", "rademacher", "coordinate", "orthonormal"):
        yield getattr(kind, name)(2)
        yield getattr(kind, name)(2, seed=3, shared=True).at(5)
for net in (student, other):
    for backend in (None, "reference"):
        for projections in (*drawn(sk.Directions), *drawn(sk.Cotangents)):
            how = {projections.NAME: projections, "backend": backend}
            loss = sk.sobolev_loss(net, x, sk.Targets(**tensors), sample_weight=tensors["values"][:, 0], **how)
            assert loss.device.type == "cpu" and loss.dtype == torch.float32
            loss.backward()
            sk.sobolev_loss(net, x, sk.Targets(teacher=teacher), reduction="none", **how).sum().backward()
        for more in ({"derivatives": "exact"}, {"order": 2}, {"wrt": [2, 0]}, {"weights": "differential-ml"}):
            columns = {"jacobian": tensors["jacobian"][..., [2, 0]]} if "wrt" in more else {}
            second = {"hessian": hessian} if "order" in more else {}
            sk.sobolev_loss(net, x, sk.Targets(**tensors | columns | second), backend=backend, **more).backward()
        for v in drawn(sk.Directions):
            assert v.tensor(x).device.type == "cpu" and v.tensor(x).dtype == torch.float32
            for name in ("jvp", "jet", "laplacian"):
                results = getattr(sk, name)(net, x, v, backend=backend)
                assert all(r.device.type == "cpu" and r.dtype == torch.float32 for r in results)
        sk.hvp(net, x, v.tensor(x), v.tensor(x), backend=backend)
        sk.laplacian(net, x, backend=backend)
    sk.explain(net, x)
for half in (torch.bfloat16, torch.float16):
    sk.sobolev_loss(student.to(half), x.to(half), sk.Targets(**{k: t.to(half) for k, t in tensors.items()})).backward()
"""


def test_every_function_under_other_defaults_of_torch():
    """Set before the import: whatever names no device or no dtype is of another one."""
    run(DEFAULTS)


# Numbers, not only that they are there: these tests name what they make themselves.
LISTED = "test_a_step_uses_the_very_bits or test_a_call_takes_the_draw or test_shared_and_unbiased or half_precision"


@pytest.mark.parametrize("default", ["device=meta", "dtype=float64"])
def test_listed_tests_under_other_defaults_of_torch(default):
    files = [f"python_tests/test_{name}.py" for name in ("cotangents", "correctness", "derivatives")]
    command = [sys.executable, "-m", "pytest", "-x", f"--default-{default}", "-k", LISTED, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 40
