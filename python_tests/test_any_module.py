"""Any module or function by the reference: right against the same written out by hand, to all orders, or refused."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import sobolev_kernels as sk
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.rule import BY_DIFFERENCE

N, D, H, O = 5, 3, 8, 2
aten = torch.ops.aten
# torch.jit announces its end; no test here is about that
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*", "ignore:.*is deprecated.*TorchScript.*")


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X = numbers(N, D)
TARGETS = {"values": numbers(N, O, seed=1), "jacobian": numbers(N, O, D, seed=2)}
HESSIAN = numbers(N, O, D, D, seed=3)
MODES = {
    "directions": {"directions": sk.Directions.given(numbers(2, N, D, seed=4))},
    "cotangents": {"cotangents": sk.Cotangents.given(numbers(2, N, O, seed=5))},
    "order 2": {"directions": sk.Directions.given(numbers(2, N, D, seed=4)), "order": 2},
}


def loss(student, x, mode="directions", **more):
    hessian = {"hessian": HESSIAN} if mode == "order 2" else {}
    return sk.sobolev_loss(student, x, sk.Targets(**TARGETS, **hessian), backend="reference", **MODES[mode], **more)


class Between(nn.Module):
    """A linear layer, something in between, tanh, and a linear layer; all with the same numbers."""

    def __init__(self, between):
        super().__init__()
        self.first, self.last, self.between = nn.Linear(D, H).double(), nn.Linear(H, O).double(), between
        self.weight, self.bias = nn.Parameter(numbers(H, seed=6)), nn.Parameter(numbers(H, seed=7))
        for seed, parameter in enumerate((*self.first.parameters(), *self.last.parameters())):
            parameter.data.copy_(numbers(*parameter.shape, seed=seed))

    def forward(self, x):
        return self.last(torch.tanh(self.between(self.first(x), self.weight, self.bias)))


def assert_same_steps(student, written, mode, inputs=None):
    """Loss and all gradients, and the gradients of a gradient penalty on them."""
    results = []
    for module in (student, written):
        x = X.clone().requires_grad_()
        parameters = [x, *(p for _, p in sorted((inputs or module).named_parameters()))]
        value = loss(module, x, mode)
        gradients = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
        again = torch.autograd.grad(sum(g.square().sum() for g in gradients), parameters, materialize_grads=True)
        results.append((value, *gradients, *again))
    for i, (got, expected) in enumerate(zip(*results, strict=True)):
        assert (got - expected).abs().max() <= 1e-10 * expected.abs().max(), f"{mode}, number {i}"


def standard(h, dims, eps=1e-5):
    centred = h - h.mean(dims, keepdim=True)
    return centred / (centred.square().mean(dims, keepdim=True) + eps).sqrt()


def channels(f):
    """Of two channels of four positions."""
    return lambda h, w, b: f(h.view(N, 2, 4), w[:2], b[:2]).view(N, H)


def centres(w, b):
    return w[:, None] + b


def within_samples(f):
    """Distances of four points to each other, and two numbers more."""
    return lambda h, w, b: torch.cat([torch.stack([f(each.view(4, 2)) for each in h]), h[:, :2]], 1)


def pairwise(points):
    i, j = torch.triu_indices(4, 4, 1)
    return (points[i] - points[j]).square().sum(-1).sqrt()


MEAN, VARIANCE = numbers(H, seed=8), numbers(H, seed=9).square() + 0.5
HAND = {
    "layer": lambda h, w, b: standard(h, (-1,)) * w + b,
    "group": lambda h, w, b: standard(h.view(N, 2, 4), (2,)).view(N, H) * w + b,
    "rms": lambda h, w, b: h / (h.square().mean(-1, keepdim=True) + torch.finfo(h.dtype).eps).sqrt() * w,
    "batch": lambda h, w, b: (h - MEAN) / (VARIANCE + 1e-5).sqrt() * w + b,
    "instance": channels(lambda h, w, b: standard(h, (-1,)) * w[:, None] + b[:, None]),
    "distances": lambda h, w, b: (h[:, None] - centres(w, b)).square().sum(-1).sqrt(),
    "distances within": within_samples(pairwise),
    "hardsigmoid": lambda h, w, b: ((h * w + b + 3) / 6).clamp(0, 1),
}
SPELT = {
    "functional.layer_norm": ("layer", lambda h, w, b: functional.layer_norm(h, (H,), w, b)),
    "torch.layer_norm": ("layer", lambda h, w, b: torch.layer_norm(h, (H,), w, b)),
    "torch.native_layer_norm": ("layer", lambda h, w, b: torch.native_layer_norm(h, (H,), w, b, 1e-5)[0]),
    "aten.layer_norm": ("layer", lambda h, w, b: aten.layer_norm(h, [H], w, b)),
    "aten.layer_norm.default": ("layer", lambda h, w, b: aten.layer_norm.default(h, [H], weight=w, bias=b)),
    "aten.native_layer_norm": ("layer", lambda h, w, b: aten.native_layer_norm(h, [H], w, b, 1e-5)[0]),
    "nn.LayerNorm": ("layer", lambda h, w, b: functional_call(nn.LayerNorm(H), {"weight": w, "bias": b}, (h,))),
    "checkpoint": (
        "layer", lambda h, w, b: checkpoint(functional.layer_norm, h, (H,), w, b, use_reentrant=False)
    ),
    "functional.group_norm": ("group", lambda h, w, b: functional.group_norm(h, 2, w, b)),
    "torch.group_norm": ("group", lambda h, w, b: torch.group_norm(h, 2, w, b)),
    "aten.native_group_norm": ("group", lambda h, w, b: aten.native_group_norm(h, w, b, N, H, 1, 2, 1e-5)[0]),
    "functional.rms_norm": ("rms", lambda h, w, b: functional.rms_norm(h, (H,), w)),
    "torch.rms_norm": ("rms", lambda h, w, b: torch.rms_norm(h, (H,), w)),
    "nn.RMSNorm": ("rms", lambda h, w, b: functional_call(nn.RMSNorm(H), {"weight": w}, (h,))),
    "functional.batch_norm": ("batch", lambda h, w, b: functional.batch_norm(h, MEAN, VARIANCE, w, b)),
    "torch.batch_norm": ("batch", lambda h, w, b: torch.batch_norm(h, w, b, MEAN, VARIANCE, False, 0.1, 1e-5, False)),
    "aten.native_batch_norm": (
        "batch", lambda h, w, b: aten.native_batch_norm(h, w, b, MEAN, VARIANCE, False, 0.1, 1e-5)[0]
    ),
    "functional.instance_norm": (
        "instance", channels(lambda h, w, b: functional.instance_norm(h, weight=w, bias=b))
    ),
    "torch.instance_norm": (
        "instance", channels(lambda h, w, b: torch.instance_norm(h, w, b, None, None, True, 0.1, 1e-5, False))
    ),
    "nn.InstanceNorm1d": (
        "instance", channels(lambda h, w, b: nn.InstanceNorm1d(2)(h) * w[:, None] + b[:, None])
    ),
    # of these torch has no second derivative
    "torch.cdist": ("distances", lambda h, w, b: torch.cdist(h, centres(w, b))),
    "torch.pdist": ("distances within", within_samples(torch.pdist)),
    "functional.hardsigmoid": ("hardsigmoid", lambda h, w, b: functional.hardsigmoid(h * w + b)),
    "nn.Hardsigmoid": ("hardsigmoid", lambda h, w, b: nn.Hardsigmoid(inplace=True)(h * w + b)),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SPELT)
def test_norms_however_spelt(name, mode):
    kind, between = SPELT[name]
    assert_same_steps(Between(between), Between(HAND[kind]), mode)


def test_distances_of_0_have_derivatives_0():
    """Of each sample's points to each other, itself too."""

    def apart(h, w, b):
        points = h.view(N, 4, 2)
        return torch.cdist(points, points).flatten(1)[:, :H]

    x = X.clone().requires_grad_()
    gradients = torch.autograd.grad(loss(Between(apart), x), x)
    assert gradients[0].isfinite().all()


def test_what_has_no_second_derivative_is_refused():
    def segments(h, w, b):
        return torch.segment_reduce(h.T.contiguous(), "sum", lengths=torch.full((H,), 1)).T

    with pytest.raises(sk.NotProvided, match="no second derivative in PyTorch"):
        loss(Between(segments), X)
    student, v, plain = Between(segments), torch.ones_like(X)[None], {"backend": "reference"}
    for call in (lambda: sk.jvp(student, X, v, **plain), lambda: sk.laplacian(student, X, **plain)):
        with pytest.raises(sk.NotProvided, match="no further derivative in PyTorch"):
            call()


BY_HAND = Between(HAND["layer"])


class Norm(nn.Module):
    """What torch.jit can script."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(D, H), nn.LayerNorm(H), nn.Linear(H, O)

    def forward(self, x):
        return self.last(torch.tanh(self.norm(self.first(x))))


def with_norm():
    module, hand = Norm().double(), Between(HAND["layer"])
    module.norm.weight, module.norm.bias = hand.weight, hand.bias
    module.first, module.last = hand.first, hand.last
    return module, hand


class Checkpointed(nn.Module):
    def __init__(self, module, use_reentrant=False):
        super().__init__()
        self.module, self.use_reentrant = module, use_reentrant

    def forward(self, x):
        return checkpoint(self.module, x, use_reentrant=self.use_reentrant)


WRAPPED = {
    "checkpoint": Checkpointed,
    "checkpoint of checkpoint": lambda module: Checkpointed(Checkpointed(module)),
    "torch.compile": lambda module: torch.compile(module, backend="aot_eager"),
    "a compiled function": lambda module: torch.compile(lambda x: module(x), backend="aot_eager"),
    "compiled within": lambda module: nn.Sequential(nn.Identity(), torch.compile(module, backend="aot_eager")),
    "functional_call": lambda module: lambda x: functional_call(module, dict(module.named_parameters()), (x,)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_modules(name, mode):
    module, hand = with_norm()
    student = WRAPPED[name](module)
    for _ in range(2):
        x = X.clone().requires_grad_()
        inputs = [x, module.norm.weight, module.norm.bias, *module.first.parameters(), *module.last.parameters()]
        got = torch.autograd.grad(loss(student, x, mode), inputs)
        expected = torch.autograd.grad(loss(hand, x, mode), inputs)
        for g, e in zip(got, expected, strict=True):
            assert (g - e).abs().max() <= 1e-10 * e.abs().max()


SCRIPTS = {"script": torch.jit.script, "trace": lambda module: torch.jit.trace(module, X)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_scripted_norm_is_refused_where_torch_is_wrong(name, mode):
    module, hand = with_norm()
    scripted = SCRIPTS[name](module)
    for _ in range(3):
        # only its first calls are not optimized
        with pytest.raises(sk.NotProvided, match="third derivative of this norm is wrong"):
            loss(scripted, X.clone().requires_grad_(), mode)
        if mode != "order 2":
            with torch.no_grad():
                assert_within_rule("loss", loss(scripted, X, mode), loss(hand, X, mode))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SCRIPTS)
def test_other_scripted_modules_are_right(name, mode):
    module, _ = with_norm()
    module.norm = nn.GELU()
    scripted = SCRIPTS[name](module)
    for _ in range(3):
        assert_same_steps(scripted, module, mode)


def test_a_reentrant_checkpoint_is_refused():
    with pytest.raises(sk.NotProvided, match="pass use_reentrant=False"):
        loss(Checkpointed(with_norm()[0], use_reentrant=True), X)


def batch_norm(*arguments):
    return lambda x: functional.batch_norm(x, *arguments)[:, :O]


zeros, ones = torch.zeros(D).double(), torch.ones(D).double()
COUPLED = {
    "nn.BatchNorm1d": nn.Sequential(nn.BatchNorm1d(D), nn.Linear(D, O)).double(),
    "nn.SyncBatchNorm": nn.Sequential(nn.SyncBatchNorm(D), nn.Linear(D, O)).double(),
    "without running statistics": nn.Sequential(
        nn.BatchNorm1d(D, track_running_stats=False), nn.Linear(D, O)).double().eval(),
    "one of many": nn.Sequential(nn.BatchNorm1d(D).eval(), nn.Linear(D, O), nn.BatchNorm1d(O)).double(),
    "scripted": torch.jit.script(nn.Sequential(nn.BatchNorm1d(D), nn.Linear(D, O)).double()),
    "compiled": torch.compile(nn.Sequential(nn.BatchNorm1d(D), nn.Linear(D, O)).double(), backend="eager"),
    "functional.batch_norm": batch_norm(None, None, None, None, True),
    "torch.batch_norm": lambda x: torch.batch_norm(x, None, None, zeros, ones, True, 0.1, 1e-5, False)[:, :O],
    "torch.native_batch_norm": lambda x: torch.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5)[0][:, :O],
    "aten.batch_norm": lambda x: aten.batch_norm(x, None, None, zeros, ones, True, 0.1, 1e-5, False)[:, :O],
    "aten._native_batch_norm_legit.no_stats": lambda x: aten._native_batch_norm_legit.no_stats(
        x, None, None, True, 0.1, 1e-5)[0][:, :O],
    "functional_call": lambda x: functional_call(COUPLED["nn.BatchNorm1d"], {}, (x,)),
}  # fmt: skip


@pytest.mark.parametrize(
    "name, role",
    [(name, role) for name in COUPLED for role in ("student", "teacher", "vjp")]
    + [("functional.batch_norm", "compiled student"), ("nn.BatchNorm1d", "compiled teacher")],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which dynamo asks for
def test_statistics_of_the_batch_are_refused(name, role):
    f = COUPLED[name]
    before = [b.clone() for b in f.buffers()] if isinstance(f, nn.Module) else []
    call = {
        "student": lambda x: loss(f, x),
        "vjp": lambda x: sk.vjp(f, x, sk.Cotangents.basis()),
        "teacher": lambda x: sk.sobolev_loss(BY_HAND, x, sk.Targets(teacher=f), **MODES["directions"]),
    }[role.removeprefix("compiled ")]
    if role.startswith("compiled"):
        torch._dynamo.reset()
        call = torch.compile(call, backend="eager")
    with pytest.raises(sk.NotProvided, match="statistics of the batch"):
        call(X)
    for buffer, was in zip(f.buffers() if before else (), before, strict=True):
        assert torch.equal(buffer, was)


def test_the_module_with_statistics_is_named():
    with pytest.raises(sk.NotProvided, match=r"student: .* got BatchNorm1d '2' in train mode; call eval\(\) on it"):
        loss(COUPLED["one of many"], X)


@pytest.mark.filterwarnings("ignore:student. instance norm with running:sobolev_kernels.SobolevWarning")
def test_instance_norm_keeps_its_running_statistics():
    """It takes those of one sample, and tracks them."""
    results = []
    for call in (lambda f, x: sk.jvp(f, x, sk.Directions.basis()), lambda f, x: f(x)):
        norm = nn.InstanceNorm1d(1, track_running_stats=True).double()
        call(lambda x, norm=norm: norm(x[:, None])[:, 0], X)
        results.append(norm.running_var)
    assert torch.equal(*results) and not torch.equal(results[0], torch.ones(1).double())


class Attention(nn.Module):
    """Of the features as positions, each a vector of four numbers."""

    def __init__(self, attend):
        super().__init__()
        self.embed, self.attend, self.last = nn.Linear(1, 4).double(), attend, nn.Linear(4, O).double()

    def forward(self, x):
        return self.last(self.attend(self.embed(x[..., None])).mean(1))


class Written(nn.Module):
    """Attention of one head, as it is defined."""

    def __init__(self, causal=False):
        super().__init__()
        self.causal = causal

    def forward(self, q, k, v):
        scores = q @ k.mT / q.shape[-1] ** 0.5
        hidden = torch.ones_like(scores).triu(1).bool() & self.causal
        return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v


class MultiHead(nn.Module):
    """nn.MultiheadAttention of two heads, as it is defined."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, h):
        weight, bias = self.base.in_proj_weight, self.base.in_proj_bias
        q, k, v = ((h @ weight.T + bias).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)).unbind(0)
        return self.base.out_proj(Written()(q, k, v).transpose(1, 2).flatten(-2))


class EncoderLayer(nn.Module):
    """nn.TransformerEncoderLayer, as it is defined."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, h):
        b = self.base
        norm = lambda n, h: standard(h, (-1,)) * n.weight + n.bias  # noqa: E731
        h = norm(b.norm1, h + MultiHead(b.self_attn)(h))
        return norm(b.norm2, h + b.linear2(functional.gelu(b.linear1(h))))


def attention(name):
    torch.manual_seed(0)
    if name.startswith("scaled_dot_product_attention"):
        causal = "causal" in name
        sdpa = functional.scaled_dot_product_attention
        return lambda h: sdpa(h, h.sin(), h.cos(), is_causal=causal), lambda h: Written(causal)(h, h.sin(), h.cos())
    if name.startswith("MultiheadAttention"):
        base, need = nn.MultiheadAttention(4, 2, batch_first=True).double(), "with weights" in name
        return lambda h: base(h, h, h, need_weights=need)[0], MultiHead(base)
    base = nn.TransformerEncoderLayer(4, 2, 5, 0.0, "gelu", batch_first=True).double().train("train" in name)
    if "stack" in name:
        return nn.TransformerEncoder(base, 1).train("train" in name), None
    return base, EncoderLayer(base)


ATTENTION = [
    "scaled_dot_product_attention", "scaled_dot_product_attention, causal", "MultiheadAttention",
    "MultiheadAttention with weights", "TransformerEncoderLayer, train", "TransformerEncoderLayer, eval",
    "TransformerEncoder stack, eval",
]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name, mode):
    attend, written = attention(name)
    student = Attention(attend)
    if written is None:
        # a stack of one layer, which it has copied
        written = EncoderLayer(attend.layers[0])
    hand = Attention(written)
    hand.embed, hand.last = student.embed, student.last
    inner = [p for p in written.parameters()] if isinstance(written, nn.Module) else []
    results = []
    for module in (student, hand):
        x = X.clone().requires_grad_()
        value = loss(module, x, mode)
        inputs = [x, *student.embed.parameters(), *student.last.parameters(), *inner]
        gradients = torch.autograd.grad(value, inputs, create_graph=True)
        again = torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs, materialize_grads=True)
        results.append((value, *gradients, *again))
    for got, expected in zip(*results, strict=True):
        assert (got - expected).abs().max() <= 1e-10 * expected.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_attention_within_a_checkpoint(mode):
    attend, _ = attention("scaled_dot_product_attention")
    student = Attention(attend)
    results = []
    for module in (student, Checkpointed(student)):
        x = X.clone().requires_grad_()
        results.append(torch.autograd.grad(loss(module, x, mode), (x, *student.parameters())))
    for got, expected in zip(*results, strict=True):
        assert_within_rule("gradient", got, expected)


class Fourier(nn.Module):
    """A layer of a Fourier neural operator, of complex weights, with a table of whole numbers beside them."""

    def __init__(self):
        super().__init__()
        self.modes = nn.Parameter(torch.complex(numbers(2, H, seed=1), numbers(2, H, seed=2)))
        self.which = nn.Parameter(torch.tensor([0, 1]), requires_grad=False)
        self.last = nn.Linear(H, O).double()
        self.register_buffer("phase", torch.complex(numbers(H), numbers(H, seed=3)))

    def forward(self, x):
        spectrum = torch.fft.rfft(x)[:, self.which] @ self.modes * self.phase
        return self.last(spectrum.abs().square().add(1).log() + spectrum.real.tanh())


@pytest.mark.parametrize("mode", MODES)
def test_complex_and_whole_parameters(mode):
    student = Fourier()
    inputs = [p for p in student.parameters() if p.requires_grad]
    value = loss(student, X, mode)
    assert_within_rule("loss", value, loss(lambda x: student(x), X, mode))
    gradients = torch.autograd.grad(value, inputs)
    for parameter, gradient in zip(inputs, gradients, strict=True):
        # along one direction, real and imaginary, by differences
        step = torch.randn_like(parameter)
        values = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.add_(step, alpha=h)
                values.append(loss(student, X, mode))
                parameter.sub_(step, alpha=h)
        expected = (values[0] - values[1]) / 2e-5
        slope = (
            (torch.view_as_real(gradient) * torch.view_as_real(step)).sum()
            if gradient.is_complex()
            else (gradient * step).sum()
        )
        torch.testing.assert_close(slope, expected, **BY_DIFFERENCE)


def test_real_parameters_of_another_dtype_are_refused():
    student = Fourier()
    student.last.float()
    with pytest.raises(ValueError, match="student: expected all parameters"):
        loss(student, X)


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("given", ["plain", "leaf", "made"])
def test_a_module_that_writes_to_its_input(given, role):
    """The input stays as it is, and of one that is not a leaf derivatives are not those at what was written."""
    writes = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)).double()
    reads = nn.Sequential(nn.ReLU(), writes[1])
    start = torch.randn(5, 3, dtype=torch.float64)
    results = []
    for module in (writes, reads):
        x = start.clone().requires_grad_(given != "plain")
        x = x * 1.0 if given == "made" else x
        if role == "student":
            results.append(sk.jvp(module, x, torch.ones_like(x)[None]))
        else:
            torch.manual_seed(0)
            student = sk.MLP(3, 2, width=4).double()
            results.append([sk.sobolev_loss(student, x, sk.Targets(teacher=module), derivatives="exact")])
        assert torch.equal(x, start)
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("what", ["inputs", "targets", "student"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_tensors_made_in_inference_mode(backend, what):
    """Autograd keeps none of them, so that copies are computed with."""
    student, x = sk.MLP(3, 2, width=4), torch.randn(5, 3)
    with torch.inference_mode():
        made = copy.deepcopy(student) if what == "student" else student
        inputs = x.clone() if what == "inputs" else x
        y = x[:, :2].clone() if what == "targets" else x[:, :2]
        targets = sk.Targets(values=y, jacobian=y.new_ones(5, 2, 3))
    settings = {"derivatives": "exact", "derivative_loss": "cosine", "reduction": "none", "backend": backend}
    ordinary = sk.Targets(values=x[:, :2], jacobian=torch.ones(5, 2, 3))
    results = []
    for model, z, t in ((made, inputs, targets), (student, x, ordinary)):
        value = sk.sobolev_loss(model, z, t, **settings)
        results.append([value, *torch.autograd.grad(value.sum(), list(model.parameters()))])
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)
