"""`torch.compile(fullgraph=True)` of a loss of students that are no MLPs: by torch.func, which dynamo follows."""

import pytest
import torch
from torch import nn

import sobolev_kernels as sk
from python_tests.students import Call
from sobolev_kernels.testing.rule import ANOTHER_WAY

D = 4
f64 = torch.float64


@pytest.fixture(autouse=True)
def poison_outputs():
    """Not here: torch.compile wants the real allocator, and dynamo a fresh cache."""
    torch._dynamo.reset()


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=f64, generator=torch.Generator().manual_seed(seed))


class Normed(nn.Module):
    def __init__(self, O):
        super().__init__()
        self.norm, self.body, self.last = nn.LayerNorm(D), nn.Linear(D, D), nn.Linear(D, O)

    def forward(self, x):
        return self.last(x + torch.tanh(self.body(self.norm(x))))


class Skip(nn.Module):
    """Convolutions, a skip, and another shape by unflatten."""

    def __init__(self, O):
        super().__init__()
        self.down, self.up = nn.Conv1d(1, 3, 2, stride=2), nn.ConvTranspose1d(3, 1, 2, stride=2)
        self.last = nn.Linear(2 * D, O)

    def forward(self, x):
        x = x.unflatten(1, (1, D))
        return self.last(torch.cat([self.up(torch.tanh(self.down(x))), x], 1).flatten(1).sin())


class Attending(nn.Module):
    def __init__(self, O):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(2, 1, 4, 0.0, "gelu", batch_first=True, norm_first=True)
        self.last = nn.Linear(2, O)

    def forward(self, x):
        return self.last(self.layer(x.unflatten(-1, (D // 2, 2))).mean(1))


class Mixing(nn.Module):
    """Whose samples see each other, so that a gradient of an output is no derivative along directions."""

    def __init__(self, O):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, O))

    def forward(self, x):
        return self.net(x - x.mean(0)) * x[:, :1]


STUDENTS = {"normed": Normed, "skip": Skip, "attending": Attending, "mixing": Mixing}


def made(kind, O):
    torch.manual_seed(5)
    return kind(O).double()


# Of one output and two directions the gradient of the output, of three outputs the tangents.
def along(student, x, y, **settings):
    O, x_ = y.shape[1], x.detach()
    v = torch.stack([x_.cos(), x_])
    targets = sk.Targets(values=y, tangents=v[:, :, :O].sin(), directions=v)
    return sk.sobolev_loss(student, x, targets, **settings)


def pulled(student, x, y, **settings):
    targets = sk.Targets(values=y, vjps=x.detach()[None], cotangents=y[None].cos())
    return sk.sobolev_loss(student, x, targets, **settings)


def exact(student, x, y, **settings):
    jacobian = x.detach()[:, None].expand(-1, y.shape[1], -1)
    return sk.sobolev_loss(student, x, sk.Targets(values=y, jacobian=jacobian), derivatives="exact", **settings)


ROWS = [
    ("normed", along, 1, None), ("normed", along, 3, None), ("normed", pulled, 3, None), ("skip", along, 1, None),
    ("skip", along, 3, None), ("skip", exact, 1, None), ("attending", along, 1, None), ("attending", pulled, 1, None),
    ("mixing", along, 1, None), ("mixing", along, 2, True), ("mixing", exact, 1, None),
]  # fmt: skip


@pytest.mark.parametrize("name, loss, O, dynamic", ROWS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_compiled_loss_is_the_eager_one(name, loss, O, dynamic):
    student = made(STUDENTS[name], O)
    compiled = torch.compile(lambda x, y: loss(student, x, y), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for N in (7, 5) if dynamic else (7,):
        x, y, results = numbers(N, D), numbers(N, O, seed=1), []
        for function in (lambda x, y: loss(student, x, y, backend="reference"), compiled):
            x = x.detach().requires_grad_()
            value = function(x, y)
            results.append([value, *torch.autograd.grad(value, (x, *student.parameters()))])
        torch.testing.assert_close(results[1], results[0], **ANOTHER_WAY)


def test_dropout_draws_one_mask_for_values_and_derivatives():
    """Of a student that is linear but for its mask, the value at x = 1 is the derivative along 1."""
    student = nn.Sequential(nn.Dropout(0.5), Call(lambda x: x.sum(1, keepdim=True))).train()
    ones = torch.ones(1, 64, dtype=f64)
    targets = sk.Targets(values=ones[:, :1], tangents=ones[None, :, :1], directions=ones[None])
    call = lambda x: sk.sobolev_loss(student, x, targets, return_terms=True)  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    for _ in range(3):
        terms = compiled(ones.clone().requires_grad_())
        assert torch.equal(terms.value, terms.derivative)


def test_what_is_cut_is_refused():
    student = Call(lambda x, net: net(x.detach()) + x[:, :1].sin().detach(), nn.Linear(D, 1).double())
    compiled = torch.compile(lambda x, y: along(student, x, y), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="no path of autograd leads there"):
        compiled(numbers(5, D), numbers(5, 1))


class Cube(torch.autograd.Function):
    """Without a rule for torch.func."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo's, where it goes on after a break
def test_what_torch_func_does_not_take_breaks_the_graph():
    """It is run as it is, without fullgraph."""
    student = Call(lambda x, net: net(Cube.apply(x)), nn.Linear(D, 1).double())
    x, y, parameters = numbers(5, D), numbers(5, 1), tuple(student.parameters())
    compiled = torch.compile(lambda x, y: pulled(student, x, y), backend="eager")
    got, expected = compiled(x, y), pulled(student, x, y, backend="reference")
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, parameters), torch.autograd.grad(expected, parameters))


def test_a_step_whose_backward_is_compiled_too():
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip("this version of PyTorch compiles no backward into the step")
    student, x, y = made(Normed, 1), numbers(5, D), numbers(5, 1)
    along(student, x, y, backend="reference").backward()
    expected = [p.grad for p in student.parameters()]
    student.zero_grad()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        torch.compile(lambda: along(student, x, y).backward(), fullgraph=True, backend="aot_eager")()
    for parameter, gradient in zip(student.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
