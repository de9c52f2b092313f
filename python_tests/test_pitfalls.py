"""Students that are no MLPs in dresses, and operations past the rules of pairs: right, or refused by name.

The oracle is that of test_streams.py: differences of the forward in float64, which autograd differentiates.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as everywhere
from torch.nn.utils import parametrizations, parametrize, prune

import sobolev_kernels as sk
from python_tests.students import Call
from python_tests.test_streams import Blocks, assert_right, differences, numbers
from sobolev_kernels.paths import known_of
from sobolev_kernels.testing.rule import BY_DIFFERENCES

N, D = 3, 6


def assert_near(got, expected):
    assert (got - expected).abs().max() <= BY_DIFFERENCES["a network"] * expected.abs().max().clamp(min=1e-2)


def blocks():
    torch.manual_seed(1)
    return Blocks(2).double()


def each(change, kind=nn.Linear):
    """A residual network, each layer of which is changed."""
    module = blocks()
    for part in [*module.modules()]:
        if isinstance(part, kind):
            change(part)
    return module


class Adapted(nn.Module):
    """LoRA as a module around a layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.down = layer, nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x):
        return self.layer(x) + 0.5 * self.up(self.down(x))


def adapted():
    module = blocks()
    for block in module.blocks:
        block[1], block[3] = Adapted(block[1]), Adapted(block[3])
    return module.double()


class LowRank(nn.Module):
    """The same as a parametrization of a weight."""

    def __init__(self, weight):
        super().__init__()
        self.a, self.b = nn.Parameter(numbers(len(weight), 1)), nn.Parameter(numbers(1, weight.shape[1]))

    def forward(self, weight):
        return weight + self.a @ self.b


class Labelled(nn.Module):
    """Of a class and of numbers; the class is a column of the inputs."""

    def __init__(self):
        super().__init__()
        self.embedding, self.bag = nn.Embedding(5, 4), nn.EmbeddingBag(5, 4)
        self.net = nn.Sequential(nn.Linear(9, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x):
        label = (2 * x[:, 0].abs()).long().clamp(max=4)
        return self.net(torch.cat([self.embedding(label) + self.bag(label[:, None]), x[:, 1:]], 1))


def cached(x, net):
    with parametrize.cached():
        return net(x) * net(x + 1)


def on_cpu(x, net):
    with torch.autograd.graph.save_on_cpu():
        return net(x)


DRESSES = {
    "AveragedModel": lambda: torch.optim.swa_utils.AveragedModel(blocks()),
    "DataParallel": lambda: nn.DataParallel(blocks()),
    "LoRA": adapted,
    "LoRA, parametrized": lambda: each(lambda m: parametrize.register_parametrization(m, "weight", LowRank(m.weight))),
    "weight norm": lambda: each(parametrizations.weight_norm),
    "weight norm of old": lambda: each(nn.utils.weight_norm),
    "weights that are cached": lambda: Call(cached, each(parametrizations.weight_norm)),
    "spectral norm": lambda: each(parametrizations.spectral_norm).eval(),
    "orthogonal": lambda: each(parametrizations.orthogonal),
    "pruned": lambda: each(lambda m: prune.random_unstructured(m, "weight", 0.3)),
    "classes": lambda: Labelled().double(),
    "compiled within": lambda: Call(lambda x, net: torch.compile(net, backend="eager")(x) * x[:, :2], blocks()),
    "saved elsewhere": lambda: Call(on_cpu, blocks()),
    "asks for a tensor": lambda: Call(lambda x, n: n(x) if isinstance(x, torch.Tensor) else None, blocks()),
    "makes a tensor": lambda: Call(lambda x, net: net(torch.as_tensor(x)), blocks()),
    "asks for a sign": lambda: Call(lambda x, net: net(x) if x.sum() > 0 else -net(x), blocks()),
    "bilinear": lambda: Call(lambda x, a, b: b(a(x), x), nn.Linear(D, 3), nn.Bilinear(3, D, 2)).double(),
    "U, a decoder": lambda: Call(
        lambda x, t: t(x.view(-1, 3, 2).repeat(1, 1, 2), x.view(-1, 2, 3)[..., :1].expand(-1, 2, 4))[:, 0, :2],
        nn.Transformer(4, 2, 1, 1, 8, batch_first=True).eval(),
    ).double(),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", DRESSES)
def test_dresses(name):
    student, x, v = DRESSES[name](), numbers(N, D), numbers(2, N, D, seed=1)
    assert_right(student, x, v, [p for p in student.parameters() if p.requires_grad], BY_DIFFERENCES["a network"])
    sk.jvp(student, x, v)
    assert known_of(student, x).flows[1, None].unfollowed is None


@pytest.mark.parametrize("backend", [None, "streams", "reference"])
@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_spectral_norm_in_train_mode(norm, backend):
    """Each call is one run of the power iteration, and its derivatives are those of the weights that this gave."""
    student = each(norm)
    for part in student.modules():
        part.training = not isinstance(part, nn.Dropout)
    expected = copy.deepcopy(student) if norm is parametrizations.spectral_norm else each(norm)
    expected.load_state_dict(student.state_dict())
    x, v = numbers(N, D), numbers(2, N, D, seed=1)
    for _ in range(3):
        results = []
        for module, tangents in ((student, sk.jvp(student, x, v, backend=backend)[1]), (expected, None)):
            if tangents is None:
                module.train()(x), module.eval()
                tangents = differences(module, x, v)
            gradients = torch.autograd.grad(tangents.sin().sum(), module.parameters(), materialize_grads=True)
            results.append([tangents, *gradients])
        for got, e in zip(*results, strict=True):
            assert_near(got, e)


def test_hooks_of_all_modules():
    """They change what each layer gives, and are a part of the student."""
    doubled = everywhere.register_module_forward_hook(lambda m, _, y: 2 * y if isinstance(m, nn.LayerNorm) else None)
    try:
        student, x, v = blocks(), numbers(N, D), numbers(2, N, D, seed=1)
        assert_right(student, x, v, [*student.parameters()], BY_DIFFERENCES["a network"])
        for backend in (None, "reference"):
            assert_near(sk.jvp(student, x, v, backend=backend)[1], differences(student, x, v))
    finally:
        doubled.remove()


def of_energy(x, net):
    return torch.autograd.grad(net(x).sum(), x, create_graph=True)[0][:, :2]


# Past the rules, and what is said of it; the reference is right.
PAST = {
    "vmap": (lambda x, net: torch.vmap(net)(x), "a transform of torch.func"),
    "func.grad": (
        lambda x, net: torch.vmap(torch.func.grad(lambda z: net(z).sum()))(x)[:, :2],
        "a transform of torch.func",
    ),
    "func.jacrev": (lambda x, net: torch.vmap(torch.func.jacrev(net))(x).sum(1)[:, :2], "a transform of torch.func"),
    "func.hessian": (
        lambda x, net: torch.vmap(torch.func.hessian(lambda z: net(z).sum()))(x).sum(1)[:, :2],
        "a transform of torch.func",
    ),
    "an ensemble": (
        lambda x, net: torch.vmap(lambda k: net(x * k).sum(1), out_dims=1)(numbers(2, 1)),
        "a transform of torch.func",
    ),
    "func.jvp": (lambda x, net: torch.func.jvp(net, (x,), (torch.ones_like(x),))[1], "a transform of torch.func"),
    "autograd.grad": (of_energy, "detach|grad"),
    "grid_sample": (
        lambda x, net: F.grid_sample(C, net(x).tanh()[None, :, None], align_corners=True)[0, 0] * net(x),
        "grid_sampler",
    ),
    "polar": (lambda x, net: torch.polar(net(x).exp(), net(x)).real, "polar"),
    "fft": (lambda x, net: torch.fft.rfft(net(x)).abs().square(), "fft_rfft"),
    "truth": (lambda x, net: net(x) if x[0, 0] else -net(x), "__bool__"),
    "a hook": (lambda x, net: hooked(net(x)), "register_hook|hook of a tensor"),
    "scripted": (lambda x, net: net(x) * SCRIPTED(x), "forward"),
}  # fmt: skip
C = numbers(1, 1, 4, 4)
SCRIPTED = torch.jit.script(nn.Sequential(nn.Linear(D, 2), nn.Tanh()).double())


def hooked(h):
    h.register_hook(lambda g: g)
    return h


@pytest.mark.parametrize("name", PAST)
def test_what_goes_past_the_rules(name):
    function, said = PAST[name]
    student, x, v = Call(function, smooth()), numbers(N, D), numbers(2, N, D, seed=1)
    with pytest.raises(sk.NotProvided, match=rf"backend: .*({said})"):
        sk.jvp(student, x, v, backend="streams")
    with pytest.warns(sk.SobolevWarning, match=rf"student: .*({said})"):
        tangents = sk.jvp(student, x, v)[1]
    expected = differences(student, x.clone().requires_grad_(), v)
    assert_near(tangents, expected)
    weights = [*student.parameters()]
    gradients = (torch.autograd.grad(t.sin().sum(), weights, materialize_grads=True) for t in (tangents, expected))
    for got, e in zip(*gradients, strict=True):
        assert_near(got, e)


def smooth():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 2)).double()


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_what_takes_whole_numbers_says_so(kind):
    """PyTorch's words name an argument of its own; of labels that are rounded in the forward it is right (Labelled)."""
    for student in (kind(5, 2), nn.Sequential(kind(5, 2), nn.Flatten(), nn.Tanh())):
        for call in (lambda m, x: sk.jvp(m, x, x[None]), lambda m, x: sk.laplacian(m, x)):
            with pytest.raises(sk.NotProvided, match="student: expected a forward of floating numbers, got embedding"):
                call(student.double(), numbers(N, D).abs())
