"""An MLP in any dress is an MLP: it takes the fused step, right beside autograd of the same module; others do not."""

import random

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import sobolev_kernels as sk
from python_tests.students import Call, Reversed
from sobolev_kernels.math.table import Formula
from sobolev_kernels.paths import known_of
from sobolev_kernels.streams.chain import RULES
from sobolev_kernels.streams.flowing import Run
from sobolev_kernels.streams.whole import chain_of
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.rule import ANOTHER_WAY, CLOSE_IN_SINGLE, ROUNDED_WITHIN

N, D, H, O = 6, 3, 5, 2


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X = numbers(N, D)
TARGETS = sk.Targets(values=numbers(N, O, seed=1), jacobian=numbers(N, O, D, seed=2))
V, U = numbers(2, N, D, seed=3), numbers(2, N, O, seed=4)


def net(*between, last=(), seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(D, H), *(between or (nn.Tanh(),)), nn.Linear(H, O), *last).double()


class OwnSequential(nn.Sequential):
    """It adds nothing."""


class OwnForward(nn.Sequential):
    def forward(self, x):
        for layer in self:
            x = layer(x)
        return x.contiguous()


class OwnLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x) - 0.5


class LowRank(nn.Module):
    """LoRA as a parametrization of a weight."""

    def __init__(self, n_out, n_in):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, n_in)), nn.Parameter(torch.randn(n_out, 2))

    def forward(self, weight):
        return weight + self.b @ self.a


def hooked(register, hook=lambda *_: None):
    student = net()
    getattr(student[0], register)(hook)
    return student


def with_weights(parametrized):
    """A network both of whose weights are parametrized."""
    student = net()
    for layer in (student[0], student[2]):
        parametrized(layer)
    return student.double()


def low_rank(layer):
    parametrize.register_parametrization(layer, "weight", LowRank(*layer.weight.shape))


def functional(x, first, last):
    return F.linear(torch.tanh(F.linear(x, first.weight, first.bias)), last.weight, last.bias)


def products(x, first, last):
    return (x @ first.weight.T + first.bias).sigmoid().matmul(last.weight.mT) + last.bias[None]


def scales(x, first, last):
    h = F.silu(-(3.0 - x.mm(first.weight.t())) / 2 * first.bias)
    return torch.addmm(last.bias, h, last.weight.T) * last.bias + 0.25 - last.bias


def reshaped(x, first, last):
    h = F.gelu(first(x.view(len(x), -1)), approximate="tanh").reshape(x.shape[0], H).to(x.dtype)
    return last(F.dropout(h.flatten(1), 0.3, training=False).clone()).view_as(torch.empty(len(x), O))


def inplace(x, first, last):
    return last(F.leaky_relu(first(x), 0.2, inplace=True).double()).sigmoid_()


def waves(x, first, last):
    return last(torch.sin(3.0 * first(x)))


class Both:
    """What wraps a module: the student, and whose parameters get gradients."""

    def __init__(self, student, owner):
        self.student, self.owner = student, owner


def one_of_two(wrap):
    owner = net()
    return Both(wrap(owner), owner)


SQUARE = nn.Linear(D, D).double(), nn.Linear(D, O).double()
LINEAR = nn.Linear(D, H).double(), nn.Linear(H, O).double()
DRESSES = {
    "wrapper": lambda: Call(lambda x, net: net(x), net(nn.SiLU())),
    "wrapper of a wrapper": lambda: Call(lambda x, net: net(x), Call(lambda x, net: net(x), net())),
    "subclass of Sequential": lambda: OwnSequential(*net(nn.ELU(0.5))),
    "forward of its own": lambda: OwnForward(*net(nn.Softplus(2, 7))),
    "subclass of Linear": lambda: net(nn.Tanh(), OwnLinear(H, H), nn.Mish()),
    "Dropout in eval": lambda: net(nn.Tanh(), nn.Dropout(0.5)).eval(),
    "Flatten and Identity": lambda: nn.Sequential(nn.Flatten(), *net(nn.Softsign()), nn.Identity()),
    "torch.compile": lambda: torch.compile(Call(lambda x, net: net(x), net()), backend="eager"),
    "compiled within": lambda: one_of_two(lambda n: Call(torch.compile(lambda x, n: n(x), backend="eager"), n)),
    "AveragedModel": lambda: torch.optim.swa_utils.AveragedModel(net()),
    "DataParallel": lambda: nn.DataParallel(net()),
    "functional": lambda: Call(functional, *LINEAR),
    "products": lambda: Call(products, *LINEAR),
    "scales and shifts": lambda: Call(scales, *LINEAR),
    "reshaped": lambda: Call(reshaped, *LINEAR),
    "in place": lambda: Call(inplace, *LINEAR),
    "waves": lambda: Call(waves, *LINEAR),
    "a function": lambda: Both(lambda x: LINEAR[1](F.elu(LINEAR[0](x))), nn.ModuleList(LINEAR)),
    "functional_call": lambda: one_of_two(
        lambda n: lambda x: torch.func.functional_call(n, dict(n.named_parameters()), (x,))
    ),
    "weight norm": lambda: with_weights(parametrizations.weight_norm),
    "spectral norm": lambda: with_weights(parametrizations.spectral_norm).eval(),
    "orthogonal": lambda: with_weights(parametrizations.orthogonal),
    "LoRA": lambda: with_weights(low_rank),
    "shared layer": lambda: Call(
        lambda x, a, b: b(a(a(x).tanh()).tanh()), nn.Linear(D, D).double(), nn.Linear(D, O).double()
    ),
    "forward hook": lambda: hooked("register_forward_hook"),
    "forward pre-hook": lambda: hooked("register_forward_pre_hook"),
    "a hook that changes": lambda: hooked("register_forward_hook", lambda module, args, h: 2 * h),
    "checkpointed": lambda: Call(lambda x, net: checkpoint(net, x, use_reentrant=False), net()),
    "a layer alone": lambda: Call(lambda x, last: last(x), nn.Linear(D, O).double()),
}


def step(student, owner, **settings):
    x = X.clone().requires_grad_()
    loss = sk.sobolev_loss(student, x, TARGETS, weights=(0.7, 1.9), **settings)
    inputs = [x, *(p for p in owner.parameters() if p.requires_grad)]
    return [loss, *torch.autograd.grad(loss, inputs, materialize_grads=True)]


def whole_steps(student, owner, backend):
    """Of a step along directions and of one against cotangents the loss, and all gradients as they come into `.grad`,
    where wrappers gather them."""
    results, dtype = [], next(owner.parameters()).dtype
    x = X.to(dtype, copy=True).requires_grad_()
    targets = sk.Targets(values=TARGETS.values.to(dtype), jacobian=TARGETS.jacobian.to(dtype))
    for given in (sk.Directions.given(V.to(dtype)), sk.Cotangents.given(U.to(dtype))):
        settings = {given.NAME: given, "backend": backend, "precision": "ieee"}
        x.grad = None
        owner.zero_grad()
        assert f"-> {backend}" in sk.explain(student, x, **settings)
        loss = sk.sobolev_loss(student, x, targets, **settings)
        loss.backward()
        gradients = [x.grad, *(p.grad for p in owner.parameters() if p.requires_grad)]
        results += [loss.detach(), *(getattr(g, "full_tensor", g.clone)().clone() for g in gradients)]
    return results


def assert_right_in_single(name, backend):
    """These steps of a dressed MLP, beside those of the reference in float64."""
    if name in WRAPPERS:
        bare, student = net(), WRAPPERS[name](net().float())
        found, expected = whole_steps(student, student, backend), whole_steps(bare, bare, "reference")
    else:
        student = DRESSES[name]()
        student, owner = (student.student, student.owner) if isinstance(student, Both) else (student, student)
        found = whole_steps(student, owner.float(), backend)
        # in float64 at last, since several dresses have the same layers
        expected = whole_steps(student, owner.double(), "reference")
    for got, e in zip(found, expected, strict=True):
        torch.testing.assert_close(got.double(), e, **CLOSE_IN_SINGLE)


def assert_same(got, expected):
    for i, (g, e) in enumerate(zip(got, expected, strict=True)):
        assert_within_rule(f"number {i}", g, e)


def is_fused(student, x=X):
    return "-> cpu" in sk.explain(student, x)


@pytest.mark.parametrize("name", DRESSES)
def test_it_is_fused_and_right(name):
    """Beside autograd of the module as it is; the second call goes the short way."""
    student = DRESSES[name]()
    student, owner = (student.student, student.owner) if isinstance(student, Both) else (student, student)
    assert is_fused(student)
    for settings in ({"directions": sk.Directions.given(V)}, {"cotangents": sk.Cotangents.given(U)}):
        expected = step(student, owner, backend="reference", **settings)
        for _ in range(3):
            assert_same(step(student, owner, **settings), expected)
    with torch.no_grad():
        y, tangents = sk.jvp(student, X, V)
        assert not y.requires_grad and not tangents.requires_grad
        assert_within_rule("y", y, student(X))
        # of what is flat no second derivative is asked for
        calls = {"jvp": lambda **b: sk.jvp(student, X, V, **b), "vjp": lambda **b: sk.vjp(student, X, U, **b)}
        calls |= {"laplacian": lambda **b: sk.laplacian(student, X, **b)} if name != "in place" else {}
        for call in calls.values():
            expected = call(backend="reference")[1]
            torch.testing.assert_close(call()[1], expected, **ANOTHER_WAY)


def written(name):
    """A function of the table as torch writes it, and its formula."""
    calls = {
        "relu": lambda h: torch.relu(h),
        "leaky_relu": lambda h: F.leaky_relu(h, 0.3),
        "elu": lambda h: F.elu(h, alpha=0.7),
        "tanh": lambda h: h.tanh(),
        "sigmoid": lambda h: torch.sigmoid(h),
        "softplus": lambda h: F.softplus(h, 2.0, threshold=3.0),
        "silu": lambda h: F.silu(h),
        "gelu": lambda h: F.gelu(h),
        "gelu_tanh": lambda h: F.gelu(h, approximate="tanh"),
        "sin": lambda h: (2.5 * h).sin(),
        "softsign": lambda h: F.softsign(h),
        "mish": lambda h: F.mish(h),
    }
    parameters = {"leaky_relu": (0.3,), "elu": (0.7,), "softplus": (2.0, 3.0), "sin": (2.5,)}
    return calls[name], Formula(name, parameters.get(name, ()))


@pytest.mark.parametrize("name", [name for name in sk.ACTIVATIONS if name != "identity"])
def test_every_activation_by_its_functions(name):
    call, formula = written(name)
    student = chain_of(Call(lambda x, a, b: b(call(a(x))), *LINEAR), X, Run(RULES, X.dtype, X.device))
    assert student.widths == (D, H, O) and student.activations[0] == formula


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        return g


class Swallowing(nn.Module):
    """It does something else where its first way fails."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        try:
            return self.net(x).abs()
        except Exception:
            return self.net(x)


class Keeping(nn.Module):
    """It keeps what its layers give."""

    def __init__(self):
        super().__init__()
        self.net, self.hidden, self.runs = net(), None, 0

    def forward(self, x):
        self.runs += 1
        self.hidden = self.net[1](self.net[0](x))
        return self.net[2](self.hidden)


def branching(x, net):
    return net(x) if x.sum() > 0 else 2 * net(x)


def written_to(x, net):
    h = net[0](x)
    h[:, 0] = 0.0
    return net[2](h.tanh())


def partly_constant(x, net):
    with torch.no_grad():
        h = net[0](x)
    return net[2](h) + net(x)


def spread(x, net):
    return net(x) + torch.linspace(0, 1, N, dtype=x.dtype)[:, None]


OTHERS = {
    "residual": Call(lambda x, net: x[:, :O] + net(x), net()),
    "two branches": Call(lambda x, a, b: a(x) + b(x), net(), net(seed=1)),
    "a gate": Call(lambda x, a, b: a(x) * b(x), net(), net(seed=1)),
    "dropout in train mode": net(nn.Tanh(), nn.Dropout(0.5)),
    "functional dropout": Call(lambda x, net: F.dropout(net(x), 0.5), net()),
    "a random number each": Call(lambda x, net: net(x) * torch.rand(N, O, dtype=x.dtype), net()),
    "item": Call(lambda x, net: net(x) * (1 + 0 * x.detach()[0, 0].item()), net()),
    "branching": Call(branching, net()),
    "written to": Call(written_to, net()),
    "two activations": net(nn.Tanh(), nn.Sigmoid()),
    "activation first": Call(lambda x, net: net(x.sin()), net()),
    "a number for each sample": Call(spread, net()),
    "a straight-through estimator": Call(lambda x, net: net[2](StraightThrough.apply(net[0](x))), net()),
    "a reversed gradient": Call(lambda x, net: net[2](Reversed.apply(net[0](x))), net()),
    "float32 within": Call(lambda x, net: net[2](net[0](x).float().double()), net()),
    "a norm": net(nn.LayerNorm(H)),
    "swallowing": Swallowing(),
    "keeping": Keeping(),
    "backward hook": hooked("register_full_backward_hook"),
    "transposed": Call(lambda x, net: (net[0].weight @ x.T).T[:, :O].sin(), net()),
    "another output": Call(lambda x, net: [net(x), net(x)[:, :O]][1], net()),
}
WARNED = {"a straight-through estimator", "a reversed gradient", "item"}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.filterwarnings("ignore::sobolev_kernels.SobolevWarning")
def test_what_is_no_chain_is_not_taken_for_one(name):
    """It is computed as before, with the same random numbers, which come where they would have come."""
    student = OTHERS[name]
    assert not is_fused(student)
    results = []
    for backend in ("reference", None, None):
        torch.manual_seed(3)
        results.append(step(student, student, backend=backend, directions=sk.Directions.given(V)))
    for got in results[1:]:
        for g, e in zip(got, results[0], strict=True):
            torch.testing.assert_close(g, e, **(ROUNDED_WITHIN if name == "float32 within" else ANOTHER_WAY))


@pytest.mark.filterwarnings("ignore:student. something keeps what flows:sobolev_kernels.SobolevWarning")
def test_what_is_kept_is_a_tensor():
    student = Keeping()
    hidden, runs = student.hidden, student.runs
    sk.explain(student, X)
    assert student.hidden is hidden and student.runs == runs
    sk.jvp(student, X, V)
    assert type(student.hidden) is torch.Tensor and torch.equal(student.hidden, student.net[1](student.net[0](X)))


def states():
    return torch.get_rng_state(), np.random.get_state()[1], random.getstate()[1]


def test_what_is_tried_leaves_no_trace():
    """Of a student that turns out to be something else, and of a call that is refused."""

    def draws(x, net):
        net.count += 1
        torch.rand(3), np.random.rand(), random.random()
        return net(x).cumsum(1)

    student = Call(draws, net())
    student.parts[0].register_buffer("count", torch.zeros(()))
    before = states()
    sk.explain(student, X)
    assert student.parts[0].count == 0
    assert all(np.array_equal(a, b) for a, b in zip(states(), before, strict=True))
    student = Call(lambda x, net: (net.count.add_(1), net(x))[1], student.parts[0])
    with pytest.raises(ValueError, match=r"values: expected \[6, 2\]"):
        sk.sobolev_loss(student, X, sk.Targets(values=X, jacobian=numbers(N, D, D)))
    assert student.parts[0].count == 0
    for count in range(1, 4):
        sk.jvp(student, X, V)
        assert student.parts[0].count == count


def test_statistics_of_a_weight_are_those_of_one_run():
    """Spectral norm takes a step of its power iteration at each run in train mode."""
    runs = []
    for call in (lambda student: student(X), lambda student: sk.jvp(student, X, V)):
        student = with_weights(parametrizations.spectral_norm).train()
        call(student)
        runs.append(list(student.buffers()))
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_nothing_is_stale():
    """Each call follows the forward anew."""
    student = Call(lambda x, net: net(x), net())
    changes = [
        lambda: None,
        lambda: setattr(student, "function", lambda x, net: 3 * net(x)),
        lambda: setattr(student.parts[0], "1", nn.ReLU()),
        lambda: student.parts[0][0].weight.data.mul_(2),
        lambda: setattr(student.parts[0][0], "weight", nn.Parameter(numbers(H, D, seed=9))),
        lambda: student.parts[0].register_forward_hook(lambda module, args, y: y + 1),
        lambda: setattr(student, "function", lambda x, net: net(x) * x[:, :1]),
        lambda: setattr(student, "function", lambda x, net: -net(x)),
        lambda: student.requires_grad_(False),
    ]
    for change in changes:
        change()
        expected = step(student, student, backend="reference", derivatives="exact")
        for _ in range(3):
            assert_same(step(student, student, derivatives="exact"), expected)


def test_a_teacher_in_a_dress():
    """He is followed too, in his own dress."""
    teacher, student = Call(lambda x, net: net(x), net(seed=5)), net()
    results = []
    for t in (teacher, teacher.parts[0]):
        loss = sk.sobolev_loss(student, X, sk.Targets(teacher=t), directions=sk.Directions.given(V))
        results.append([loss, *torch.autograd.grad(loss, student.parameters())])
    assert_same(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_that_of_an_mlp(dtype):
    bare = net().to(dtype)
    dressed = Call(lambda x, net: net(x), bare)
    results = []
    for student in (bare, dressed):
        y, tangents = sk.jvp(student, X.to(dtype), V.to(dtype))
        results.append([y, tangents, *torch.autograd.grad(tangents.float().square().sum(), [bare[0].weight])])
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)


def test_tensors_elsewhere():
    """A device that has no autocast, and an autocast that an MLP's precision follows."""
    student = Call(lambda x, net: net(x), net().to("meta"))
    assert "-> reference  plain PyTorch streams" in sk.explain(student, X.to("meta"))
    bare = net().float()
    results = []
    for student in (bare, Call(lambda x, net: net(x), bare)):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(sk.jvp(student, X.float(), V.float())[1])
    assert torch.equal(*results)


def test_order_two_of_a_function_called_relu_is_refused():
    with pytest.raises(sk.NotProvided, match="second derivative is 0 almost everywhere"):
        sk.jet(Call(lambda x, a, b: b(F.relu(a(x))), *LINEAR), X, V)


def sharded_by_layers(module, freed=True):
    """As large models are: each layer's weights are there while it is run, or until the backward is over."""
    mesh = init_device_mesh("cpu", (1,))
    for layer in module:
        if [*layer.parameters()]:
            fully_shard(layer, mesh=mesh, reshard_after_forward=freed)
    return fully_shard(module, mesh=mesh)


WRAPPERS = {
    "FSDP of each layer": sharded_by_layers,
    "FSDP of each layer, kept": lambda module: sharded_by_layers(module, freed=False),
    "DDP": lambda module: nn.parallel.DistributedDataParallel(module),
    "FSDP": lambda module: fully_shard(module, mesh=init_device_mesh("cpu", (1,))),
    "FSDP of old": lambda module: FullyShardedDataParallel(
        module, device_id=torch.device("cpu"), use_orig_params=True
    ),
}  # fmt: skip


@pytest.fixture
def one_process(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [net, lambda: net(nn.LayerNorm(H))], ids=["an MLP", "no MLP"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_distributed_students(name, make, one_process):
    """Gradients come into `.grad` as those of the bare network do, and those of the inputs where they are asked for."""
    bare, student = make(), WRAPPERS[name](make())
    for asked in (False, True):
        inputs = [X.clone().requires_grad_(asked) for _ in range(2)]
        for _ in range(3):
            for module, x in zip((bare, student), inputs, strict=True):
                module.zero_grad()
                x.grad = None
                sk.sobolev_loss(module, x, TARGETS, directions=sk.Directions.given(V)).backward()
            for a, b in zip(bare.parameters(), student.parameters(), strict=True):
                gradient = b.grad.full_tensor() if hasattr(b.grad, "full_tensor") else b.grad
                assert_within_rule("gradient", gradient, a.grad)
            if asked:
                assert_within_rule("dx", inputs[1].grad, inputs[0].grad)
        assert known_of(student, x).is_chain == (make is net and name != "FSDP of each layer")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["FSDP", "FSDP of each layer", "FSDP of old"])
def test_sharded_students_are_refused_by_the_reference(name, one_process):
    """Few outputs are no reason to go there, and what only it computes is refused in words."""
    student = WRAPPERS[name](net(nn.LayerNorm(H)))
    many = torch.stack([X] * 5)
    tangents = sk.jvp(student, X, many)[1]
    assert_within_rule("tangents", tangents, sk.jvp(net(nn.LayerNorm(H)), X, many)[1])
    for refused in (
        lambda: sk.jvp(student, X, V, backend="reference"),
        lambda: sk.vjp(lambda x: student(x).sin(), X, sk.Cotangents.basis()),
        lambda: sk.vjp(student, X, sk.Cotangents.basis()),
        lambda: sk.sobolev_loss(net(), X, sk.Targets(teacher=student)),
    ):
        with pytest.raises(sk.NotProvided, match="FSDP frees a student's parameters"):
            refused()
