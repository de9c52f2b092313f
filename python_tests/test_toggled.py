"""A student is followed both ways: whatever is changed about him, and put back, counts at once, and afterwards he goes
as fast as he went before."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import sobolev_kernels as sk
from sobolev_kernels.backends.exact import Eagerly, Mathematically, frames_of_dynamo
from sobolev_kernels.backends.running import Graphs, run_again
from sobolev_kernels.paths import known_of
from sobolev_kernels.testing.rule import ANOTHER_WAY, CLOSE_IN_SINGLE

N, D, H, P = 6, 3, 5, 2
WARNED = pytest.mark.filterwarnings("ignore::sobolev_kernels.SobolevWarning", "ignore:Full backward hook:UserWarning")
pytestmark = WARNED


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, V, JACOBIAN, VALUES = numbers(N, D), numbers(P, N, D, seed=1), numbers(N, 1, D, seed=2), numbers(N, 1, seed=3)


class Student(nn.Module):
    def __init__(self, bend):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(D, H), bend, nn.Linear(H, 1))
        self.detached, self.hidden = False, [1.0]

    def forward(self, x):
        h = self.net[1](self.net[0](x))
        return self.last(h.detach() if self.detached else h)

    def last(self, h):
        return self.net[2](h) if self.hidden == [1.0] else self.net[2](h * h)


STUDENTS = {
    "a chain": lambda: Student(nn.Tanh()).double(),
    "none": lambda: Student(nn.Sequential(nn.LayerNorm(H), nn.Tanh())).double(),
}


def step(student, **settings):
    """Loss and gradients."""
    dtype = student.net[2].weight.dtype
    targets = sk.Targets(values=VALUES.to(dtype), jacobian=JACOBIAN.to(dtype))
    loss = sk.sobolev_loss(student, X.to(dtype), targets, directions=sk.Directions.given(V.to(dtype)), **settings)
    asking = [p for p in student.parameters() if p.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, asking, materialize_grads=True)]


def by_autograd(student):
    """The same by a double backward in float64, of the module as it is called."""
    dtype = student.net[2].weight.dtype
    x, asking = X.to(dtype).requires_grad_(), [p for p in student.parameters() if p.requires_grad]
    y = student(x)
    g = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
    loss = (y - VALUES).square().mean() + ((g - JACOBIAN[:, 0]) * V).sum(2).square().mean()
    return [loss.detach(), *torch.autograd.grad(loss, asking, materialize_grads=True)]


def hook(register, function, part=1):
    """Registered on a part of the student, or on all of him."""

    def toggle(student):
        where = student if part is None else student.net[part]
        return getattr(where, register)(function).remove

    return toggle


def attribute(where, name, value):
    def toggle(student):
        of = where(student)
        before = vars(of).get(name)
        setattr(of, name, value)
        return (lambda: delattr(of, name)) if before is None else lambda: setattr(of, name, before)

    return toggle


def item(value):
    def toggle(student):
        student.hidden[0] = value
        return lambda: student.hidden.__setitem__(0, 1.0)

    return toggle


def swapped(make, part=1):
    def toggle(student):
        before, student.net[part] = student.net[part], make().double()
        return lambda: student.net.__setitem__(part, before)

    return toggle


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized(student):
    parametrize.register_parametrization(student.net[0], "weight", Twice())
    return lambda: parametrize.remove_parametrizations(student.net[0], "weight", leave_parametrized=False)


def frozen(student):
    student.net[0].weight.requires_grad_(False)
    return lambda: student.net[0].weight.requires_grad_()


def replaced(student):
    before, student.net[0].weight = student.net[0].weight, nn.Parameter(numbers(H, D, seed=7))
    return lambda: setattr(student.net[0], "weight", before)


def in_single(student):
    student.float()
    return student.double


def evaluated(student):
    student.eval()
    return student.train


def squared(module, inputs, output):
    return output * output


def looks(module, *tensors):
    return None


net, whole = lambda s: s.net[1], lambda s: s
TOGGLES = {
    "a hook that looks": hook("register_forward_hook", looks),
    "a hook that changes": hook("register_forward_hook", squared),
    "a hook before that changes": hook("register_forward_pre_hook", lambda m, inputs: (inputs[0] * inputs[0],)),
    "a backward hook of a part": hook("register_full_backward_hook", looks),
    "a backward hook before that of a part": hook("register_full_backward_pre_hook", looks),
    "a backward hook": hook("register_full_backward_hook", looks, None),
    "a module": swapped(lambda: nn.GroupNorm(1, H)),
    "a module that is a chain's": swapped(nn.Sigmoid),
    "dropout of nothing": swapped(lambda: nn.Dropout(0.0)),
    "eval": evaluated,
    "a forward": attribute(net, "forward", lambda h: torch.tanh(h * h)),
    "a method": attribute(whole, "last", lambda h: (h * h).sum(1, keepdim=True)),
    "a weight": replaced,
    "a parametrization": parametrized,
    "what asks for a gradient": frozen,
    "what nobody sees": item(2.0),
}
CUT = {
    "by a flag": attribute(whole, "detached", True),
    "by a hook": hook("register_forward_hook", lambda module, inputs, output: output.detach()),
    "by a forward": attribute(net, "forward", lambda h: torch.tanh(h.detach())),
    "by a method": attribute(whole, "last", lambda h: h.detach().sum(1, keepdim=True)),
}


def assert_right(student, times=3):
    for _ in range(times):
        for got, right in zip(step(student), by_autograd(student), strict=True):
            torch.testing.assert_close(got, right, **ANOTHER_WAY)


def assert_fast(student, before):
    """What is taken is what was taken, and a call like the last one goes the short way."""
    assert known_of(student, X).is_chain == ("-> cpu" in before)
    assert sk.explain(student, X, sk.Directions.given(V)) == before


@pytest.mark.parametrize("name", TOGGLES)
@pytest.mark.parametrize("kind", STUDENTS)
def test_both_ways(kind, name, capsys):
    student = STUDENTS[kind]()
    assert_right(student)
    before = sk.explain(student, X, sk.Directions.given(V))
    assert ("-> cpu" in before) == (kind == "a chain")
    for _ in range(2):
        put_back = TOGGLES[name](student)
        assert_right(student)
        put_back()
        assert_right(student, 16 if name == "what nobody sees" else 3)
        assert_fast(student, before)


@pytest.mark.parametrize("kind", STUDENTS)
def test_another_dtype_and_back(kind):
    student = STUDENTS[kind]()
    for _ in range(2):
        assert_right(student)
        expected = by_autograd(student)
        put_back = in_single(student)
        for _ in range(3):
            for got, right in zip(step(student), expected, strict=True):
                assert got.dtype == torch.float32
                torch.testing.assert_close(got, right.float(), **CLOSE_IN_SINGLE)
        put_back()
        for parameter, right in zip(student.parameters(), STUDENTS[kind]().parameters(), strict=True):
            parameter.data = right.data


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("kind", STUDENTS)
def test_a_path_that_is_cut_later(kind, name, capsys):
    """No silent zero after calls in which it was not; and right again when it is whole again."""
    student = STUDENTS[kind]()
    assert_right(student, times=4)
    before = sk.explain(student, X, sk.Directions.given(V))
    for _ in range(2):
        put_back = CUT[name](student)
        for _ in range(3):
            with pytest.raises(sk.NotProvided):
                step(student)
        put_back()
        assert_right(student)
        assert_fast(student, before)


def test_a_path_that_is_cut_by_what_nobody_sees():
    """By gradients, where the graph alone tells it, also within a graph that is another each time."""
    switch, calls = {"cut": False, "layers": 1}, []

    def forward(x):
        h = x.sin() * x
        for _ in range(switch["layers"]):
            h = torch.tanh(h)
        return (h.detach() if switch["cut"] else h).sum(1, keepdim=True)

    for layers in range(1, 30):
        switch.update(cut=False, layers=layers)
        for _ in range(2):
            calls.append(sk.vjp(forward, X, sk.Cotangents.basis())[1])
        leaf = X.clone().requires_grad_()
        torch.testing.assert_close(calls[-1][0], torch.autograd.grad(forward(leaf).sum(), leaf)[0], **ANOTHER_WAY)
        switch["cut"] = True
        with pytest.raises(sk.NotProvided):
            sk.vjp(forward, X, sk.Cotangents.basis())


class Branches(nn.Module):
    """Two outputs by ways of their own; what is cut is told by an item of a list."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner = nn.Linear(D, 128), nn.Sequential(nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 128))
        self.heads, self.cut = nn.ModuleList(nn.Linear(128, 1) for _ in range(2)), [None]

    def forward(self, x):
        if self.cut[0] == "all another":
            weight = self.heads[0].weight[0, :D]
            return torch.stack([(x.sin() * weight).sum(1), (x.detach().cos() * weight).sum(1)], 1)
        h = torch.sin(self.first(x))
        h = self.inner(h) + h
        return torch.cat([head(h.detach() if self.cut[0] == o else h) for o, head in enumerate(self.heads)], 1)


def test_a_branch_that_is_cut_where_the_graph_has_the_same_nodes():
    """Also where chains of layers are put off, and of a graph that was met before they were."""
    student, x = Branches(), torch.randn(256, D, generator=torch.Generator().manual_seed(0))

    def gradients(cut, backend=None):
        student.cut[0] = cut
        return sk.vjp(student, x, sk.Cotangents.basis(), backend=backend)[1]

    with pytest.raises(sk.NotProvided):
        gradients("all another")
    student.cut[0], leaf = None, x.clone().requires_grad_()
    y = student(leaf)
    right = torch.stack([torch.autograd.grad(y[:, o].sum(), leaf, retain_graph=True)[0] for o in range(2)])
    for _ in range(4):
        torch.testing.assert_close(gradients(None), right, **CLOSE_IN_SINGLE)
    assert any(chains.fused for chains in known_of(student, x).graphs.chains.values())
    for cut in ("all another", 0, 1):
        for backend in (None, "reference"):
            with pytest.raises(sk.NotProvided):
                gradients(cut, backend)
            torch.testing.assert_close(gradients(None, backend), right, **CLOSE_IN_SINGLE)


COLUMNS = {
    "a number": lambda x, k: x[:, k, None],
    "a slice": lambda x, k: x[:, k : k + 1],
    "a list": lambda x, k: x[:, [k]],
    "gather": lambda x, k: x.gather(1, torch.tensor(k).expand(len(x), 1)),
    "take": lambda x, k: x.take(torch.arange(len(x)) * D + k)[:, None],
    "unbind": lambda x, k: x.unbind(1)[k][:, None],
    "split": lambda x, k: x.split([1, 1, D - 2], 1)[k],
    "transposed": lambda x, k: x.T[torch.tensor([k])].T,
}


@pytest.mark.parametrize("way", COLUMNS)
def test_a_column_that_is_cut_by_the_same_operations(way):
    """Where two columns are swapped: of the one derivatives are wanted, of the other a constant is made."""
    columns, targets = [0, 1], sk.Targets(jacobian=torch.zeros(N, 1, 1, dtype=X.dtype))
    student = lambda x: COLUMNS[way](x, columns[0]).sin() + COLUMNS[way](x.detach(), columns[1])  # noqa: E731
    right = X[:, 0].cos().square().mean()
    for columns[:] in ([0, 1], [0, 1], [0, 1], [1, 0], [1, 0], [0, 1]):
        if columns == [0, 1]:
            loss = sk.sobolev_loss(student, X, targets, derivatives="exact", wrt=[0], weights=(0.0, 1.0))
            torch.testing.assert_close(loss, right, **ANOTHER_WAY)
        else:
            with pytest.raises(sk.NotProvided, match="changes with column 0 of"):
                sk.sobolev_loss(student, X, targets, derivatives="exact", wrt=[0], weights=(0.0, 1.0))


class Told(nn.Module):
    """Made by `change` of a wave and a number, or what that is changed into where one of its settings is another."""

    def __init__(self, change):
        super().__init__()
        self.change, self.word, self.number, self.parts, self.named = change, "", 0, [[0.0]], {"a": None}

    def forward(self, x):
        told = self.word or self.number or self.parts[0][0] or self.named["a"]
        return x[:, :1].sin() * 3 + (self.change(x) if told else 2.0)


SETTINGS = {
    "word": lambda s, on: setattr(s, "word", "on" if on else ""),
    "number": lambda s, on: setattr(s, "number", int(on)),
    "an item of a list": lambda s, on: s.parts[0].__setitem__(0, float(on)),
    "an item of a dict": lambda s, on: s.named.update(a="on" if on else None),
}
CONSTANTS = {
    "detached": lambda x: x.detach()[:, 1:2],
    "without a graph": torch.no_grad()(lambda x: x[:, 1:2] * 1),
    "a number": lambda x: x[:, 1:2].sum().item(),
}


@pytest.mark.parametrize("change", CONSTANTS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_constant_that_comes_later_in_a_graph_that_stays_the_same(setting, change):
    """In a call that is none of those in which it is looked anyway; and right again when it is gone."""
    student, right = Told(CONSTANTS[change]), torch.zeros(1, N, D, dtype=X.dtype)
    right[..., 0] = 3 * X[:, 0].cos()
    for on in (False,) * 5 + (True, True, False, False, True):
        SETTINGS[setting](student, on)
        if on:
            with pytest.raises(sk.NotProvided, match=r"no path|takes numbers"):
                sk.vjp(student, X, sk.Cotangents.basis())
        else:
            torch.testing.assert_close(sk.vjp(student, X, sk.Cotangents.basis())[1], right, **ANOTHER_WAY)


class Masked(torch.autograd.Function):
    """Written where its input is; the backward goes by a mask."""

    @staticmethod
    def forward(ctx, x, mask):
        ctx.mask = mask
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.mask, None


GLOBAL = torch.ones(D, dtype=torch.float64)


class Choosing(nn.Module):
    """By the numbers of a buffer, of which some are 0, or of that tensor, a part of it is a constant."""

    def __init__(self, choose, O=2):
        super().__init__()
        torch.manual_seed(0)
        self.choose, self.net = choose, nn.Sequential(nn.Linear(D, H), nn.Tanh(), nn.Linear(H, O)).double()
        self.register_buffer("mask", torch.ones(D, dtype=torch.float64))
        GLOBAL.fill_(1)

    def forward(self, x):
        return self.choose(x, self.mask, self.net)


def an_output(x, mask, net):
    y = net(x)
    return torch.cat([torch.where(mask[:1] > 0, y[:, :1], y[:, :1].detach()), y[:, 1:]], 1)


CHOSEN = {
    "a column": lambda x, mask, net: net(torch.where(mask > 0, x, x.detach())),
    "a column, by a product": lambda x, mask, net: net(x * mask + x.detach() * (1 - mask)),
    "a column, by a global": lambda x, mask, net: net(torch.where(GLOBAL > 0, x, x.detach())),
    "a column, by a backward": lambda x, mask, net: net(Masked.apply(1 * x, mask)),
    "an output": an_output,
}
WAYS = {
    "vjp": lambda s: sk.vjp(s, X, sk.Cotangents.basis())[1],
    "jvp": lambda s: sk.jvp(s, X, V)[1],
    "order 2": lambda s: sk.jet(s, X, V[:1])[2],
    "a teacher": lambda s: sk.sobolev_loss(
        lambda x: x[:, :2].sin(), X, sk.Targets(teacher=s), directions=sk.Directions.given(V), backend="reference"),
}  # fmt: skip


def assert_refused_where_cut(call, cut):
    """In calls that are none of those in which it is looked anyway; and right where it is whole."""
    right = call()
    for on in (False,) * 4 + (True, True, False, False, True):
        cut(on)
        if on:
            with pytest.raises(sk.NotProvided, match="no path"):
                call()
        else:
            torch.testing.assert_close(call(), right, **ANOTHER_WAY)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CHOSEN)
def test_a_path_that_is_cut_by_the_numbers_of_a_constant(name, way):
    student = Choosing(CHOSEN[name])

    def cut(on):
        student.mask[0] = GLOBAL[0] = float(not on)

    assert_refused_where_cut(lambda: WAYS[way](student), cut)


MASKS = {
    "data": lambda s, on: s.mask.data[:1].fill_(float(not on)),
    "NumPy": lambda s, on: s.mask.numpy().__setitem__(0, float(not on)),
    "another": lambda s, on: setattr(s, "mask", torch.tensor([float(not on), 1, 1], dtype=torch.float64)),
}


@pytest.mark.parametrize("O", [1, 12])
@pytest.mark.parametrize("name", MASKS)
def test_a_path_that_is_cut_by_numbers_without_a_version(name, O):
    """Of many outputs, of which all are refused that were ever cut, too."""
    student = Choosing(CHOSEN["a column"], O)
    call = lambda: sk.vjp(student, X, sk.Cotangents.basis())[1]  # noqa: E731
    if O == 1:
        return assert_refused_where_cut(call, lambda on: MASKS[name](student, on))
    for _ in range(5):
        call()
    MASKS[name](student, True)
    with pytest.raises(sk.NotProvided, match="no path"):
        call()


def test_a_graph_that_is_another_each_time_and_cut_by_numbers():
    switch = {"layers": 1}

    def choose(x, mask, net):
        for _ in range(switch["layers"]):
            x = torch.tanh(x)
        return net(torch.where(mask > 0, x, x.detach()))

    student = Choosing(choose)
    for layers in range(1, 13):
        switch["layers"] = layers
        sk.vjp(student, X, sk.Cotangents.basis())
    student.mask[0], switch["layers"] = 0, 13
    with pytest.raises(sk.NotProvided, match="no path"):
        sk.vjp(student, X, sk.Cotangents.basis())


@pytest.mark.parametrize("settings", [{}, {"wrt": (0, 1)}])
def test_constants_in_it_cost_no_look(settings):
    """Where no derivative that is asked for is 0."""
    runs = []

    def choose(x, mask, net):
        runs.append(len(x))
        return net(torch.where(mask > 0, x, x.detach()))

    student = Choosing(choose)
    student.mask[2] = float(not settings)
    for _ in range(5):
        sk.vjp(student, X, sk.Cotangents.basis(), **settings)
    runs.clear()
    sk.vjp(student, X, sk.Cotangents.basis(), **settings)
    assert runs == [N]


def test_a_constant_that_comes_later_and_that_nobody_sees():
    """In the second, fourth, eighth call in which no less is needed."""
    hidden = type("Hidden", (), {"on": False})()
    student = lambda x: x[:, :1].sin() + (x.detach()[:, 1:2] if hidden.on else 2.0)  # noqa: E731
    for _ in range(4):
        sk.vjp(student, X, sk.Cotangents.basis())
    hidden.on = True
    with pytest.raises(sk.NotProvided, match="no path"):
        for _ in range(8):
            sk.vjp(student, X, sk.Cotangents.basis())


CHANGING = {
    "cuts a part": (lambda module, inputs, output: torch.cat([output[:, :1], output[:, 1:].detach()], 1), "no path"),
    "takes a number": (lambda module, inputs, output: output * output.max().item(), "takes numbers"),
}


@pytest.mark.parametrize("name", CHANGING)
def test_a_hook_that_is_a_part_of_what_is_computed(name):
    hook, message = CHANGING[name]
    student = nn.Sequential(nn.Linear(D, H), nn.LayerNorm(H), nn.Linear(H, 2)).double()
    handle = student[2].register_forward_hook(hook)
    for _ in range(2):
        with pytest.raises(sk.NotProvided, match=message):
            sk.vjp(student, X, sk.Cotangents.basis())
    handle.remove()
    looked = []
    student[2].register_forward_hook(lambda module, inputs, output: looked.append(output.max().item()))
    for times in range(1, 4):
        sk.vjp(student, X, sk.Cotangents.basis())
        assert len(looked) == times


@pytest.mark.parametrize("context", [Eagerly, Mathematically])
def test_what_is_of_all_threads_is_as_it_was(context):
    """Also where the first that came leaves before the last, who is still within it."""

    def now():
        return frames_of_dynamo()._stance.stance, torch.backends.cuda.flash_sdp_enabled()

    before, first, second = now(), context(), context()
    first.__enter__()
    second.__enter__()
    within = now()
    first.__exit__(None, None, None)
    assert now() == within != before
    second.__exit__(None, None, None)
    assert now() == before


def test_contexts_that_another_thread_asks_for_meanwhile():
    assert run_again(torch.sin, X, Graphs()) is None


@pytest.mark.parametrize("given", [lambda w: w, lambda w: [w], lambda w: {"w": w}])
def test_functions_of_the_same_code_with_other_weights(given):
    """One of two outputs is no sign of how many another has."""

    def made(weights):
        def student(x):
            w = weights["w"] if isinstance(weights, dict) else weights[0] if isinstance(weights, list) else weights
            return torch.sin(x @ w) * x[:, :1]

        return student

    teacher = lambda x: x[:, :1].sin()  # noqa: E731
    sk.jvp(made(given(numbers(D, 2))), X, V)
    student = made(given(numbers(D, 1)))
    loss = sk.sobolev_loss(student, X, sk.Targets(teacher=teacher), directions=sk.Directions.given(V))
    y, t = sk.jvp(student, X, V, backend="reference")
    expected = (y - teacher(X)).square().mean() + (t - X[:, :1].cos() * V[:, :, :1]).square().mean()
    torch.testing.assert_close(loss, expected, **ANOTHER_WAY)
