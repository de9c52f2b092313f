"""`SobolevWarning`: what is computed as asked and hardly meant is said, once a student; what is right is not."""

import gc
import linecache
import warnings
import weakref
from functools import partial, wraps

import pytest
import torch
from torch import nn

import sobolev_kernels as sk
from python_tests.students import Call
from sobolev_kernels import advice
from sobolev_kernels.testing.problems import random

X = random(6, 3)
Y, J = X[:, :2].sin(), torch.stack((X, X), 1)
TARGETS = sk.Targets(values=Y, jacobian=J)
dropping = lambda p=0.5: nn.Sequential(nn.Linear(3, 8), nn.Dropout(p), nn.Linear(8, 2))  # noqa: E731
GLOBAL = dropping()


def student():
    return sk.MLP(3, 2, width=4)


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(warning.category is sk.SobolevWarning for warning in caught)
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def test_it_is_a_class_of_its_own():
    assert issubclass(sk.SobolevWarning, UserWarning) and sk.SobolevWarning is not UserWarning


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(3, 1, dropout=0.5), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(self.attention(x, x, x, need_weights=False)[0])


def enclosing(net):
    return lambda x: net(x)


TEACHERS = {
    "Dropout": dropping,
    "AlphaDropout": lambda: nn.Sequential(nn.Linear(3, 2), nn.AlphaDropout()),
    "RReLU": lambda: nn.Sequential(nn.Linear(3, 2), nn.RReLU()),
    "MultiheadAttention": Attention,
    "Dropout, enclosed": lambda: enclosing(dropping()),
    "Dropout, a method": lambda: dropping().forward,
    "Dropout, of a module's own": lambda: lambda x: GLOBAL(x),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_that_draws(name):
    """Once a student, however often he is called."""
    teacher, s = TEACHERS[name](), student()
    call = lambda s: sk.sobolev_loss(s, X, sk.Targets(teacher=teacher), derivatives="exact")  # noqa: E731
    (text,) = warned(lambda: [call(s) for _ in range(3)])
    assert text.startswith(f"teacher: {name.split(',')[0]} in it draws") and "eval()" in text
    assert len(warned(lambda: call(student()))) == 1


@pytest.mark.parametrize(
    "teacher",
    [dropping().eval(), dropping(0.0), sk.MLP(3, 2, width=4), nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)),
     nn.Sequential(nn.Linear(3, 2), nn.RReLU(0.2, 0.2)), lambda x: x[:, :2].sin()],
    ids=["eval", "p = 0", "MLP", "LayerNorm", "one slope", "function"],
)  # fmt: skip
def test_a_teacher_that_does_not(teacher):
    call = lambda: sk.sobolev_loss(student(), X, sk.Targets(teacher=teacher), derivatives="exact")  # noqa: E731
    assert warned(call) == []


def train(optimizer, loss, steps):
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    for _ in range(steps):
        optimizer.step(closure)


FRESH = {
    "loss": lambda s: sk.sobolev_loss(s, X, TARGETS),
    "targets made anew": lambda s: sk.sobolev_loss(s, X, sk.Targets(values=Y, jacobian=J)),
    "module": partial(sk.SobolevLoss(cotangents=sk.Cotangents.normal(2)), inputs=X, targets=TARGETS),
    "function": lambda s: sk.sobolev_loss(s, X, TARGETS, backend="reference"),
}


@pytest.mark.parametrize("name", FRESH)
def test_the_same_evaluation_along_other_directions(name):
    s = student()
    assert warned(lambda: FRESH[name](s)) == []
    (text,) = warned(lambda: [FRESH[name](s) for _ in range(3)])
    assert "evaluated again" in text and "seed=" in text and "exact" in text
    assert len(text) <= 600


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs(search):
    s = student()
    optimizer = torch.optim.LBFGS(s.parameters(), line_search_fn=search)
    (text,) = warned(lambda: train(optimizer, lambda: FRESH["targets made anew"](s), 3))
    assert "L-BFGS" in text and "loss_fn.at(step)" in text and "seed=" in text and '"exact"' in text


IMAGES = random(6, 1, 3)
OTHER_SHAPES = {
    "an MLP behind Flatten": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 2)),
    "any": lambda: nn.Sequential(nn.LayerNorm(3), nn.Flatten(), nn.Linear(3, 2)),
}
SHAPED = {
    "images": (IMAGES, sk.Targets(values=Y, jacobian=J[:, :, None]), {}),
    "not contiguous": (random(6, 3, 1).mT, sk.Targets(teacher=lambda x: x[:, 0, :2].sin()), {}),
    "coordinates": (IMAGES, sk.Targets(values=Y, jacobian=J), {"input_jacobian": random(6, 1, 3, 3)}),
}


@pytest.mark.parametrize("kind", OTHER_SHAPES)
@pytest.mark.parametrize("name", SHAPED)
def test_inputs_of_any_shape(name, kind):
    x, targets, more = SHAPED[name]
    call = lambda s: sk.sobolev_loss(s, x, targets, **more)  # noqa: E731
    (text,) = warned(lambda: [call(s := OTHER_SHAPES[kind]()), call(s), call(s)])
    assert "evaluated again" in text
    s = OTHER_SHAPES[kind]()
    (text,) = warned(lambda: train(torch.optim.LBFGS(s.parameters(), lr=0.01), lambda: call(s), 2))
    assert "L-BFGS" in text
    s = OTHER_SHAPES[kind]()
    assert warned(lambda: train(torch.optim.Adam(s.parameters()), lambda: call(s), 20)) == []
    others = lambda s: sk.sobolev_loss(s, x.clone(), targets, **more)  # noqa: E731
    assert warned(lambda: [others(s) for _ in range(3)]) == []


def test_lbfgs_after_another_optimizer():
    s = student()
    adam, lbfgs = torch.optim.Adam(s.parameters()), torch.optim.LBFGS(s.parameters())
    assert warned(lambda: train(adam, lambda: FRESH["loss"](s), 50)) == []
    assert len(warned(lambda: train(lbfgs, lambda: FRESH["loss"](s), 2))) == 1


def fixed(s, **settings):
    return sk.sobolev_loss(s, X, TARGETS, **settings)


RIGHT = {
    "seed": partial(fixed, directions=sk.Directions.sphere(2, seed=1)),
    "exact": partial(fixed, derivatives="exact"),
    "basis": partial(fixed, directions=sk.Directions.basis()),
    "given": partial(fixed, directions=sk.Directions.given(X[:2])),
    "other inputs": lambda s: sk.sobolev_loss(s, X.clone(), TARGETS),
    "other targets": lambda s: sk.sobolev_loss(s, X, sk.Targets(values=Y.clone(), jacobian=J)),
    "explain": lambda s: sk.explain(s, X),
    "derivatives, to be averaged": lambda s: sk.laplacian(s, X, sk.Directions.rademacher(2))[1].sum(),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_not_warned_of(name, capsys):
    s, kept = student(), []
    assert warned(lambda: kept.append([RIGHT[name](s) for _ in range(3)])) == []


def test_neither_is_training_nor_what_needs_no_gradient():
    s = student()
    optimizer = torch.optim.SGD(s.parameters(), lr=0.01)
    assert warned(lambda: train(optimizer, lambda: FRESH["loss"](s), 20)) == []
    s = student()
    with torch.no_grad():
        assert warned(lambda: [FRESH["loss"](s) for _ in range(3)]) == []
    assert warned(lambda: [FRESH["loss"](student().requires_grad_(False)) for _ in range(3)]) == []
    with torch.inference_mode():
        assert warned(lambda: [FRESH["loss"](s) for _ in range(3)]) == []


def test_nothing_is_said_while_traced():
    torch._dynamo.reset()
    s, teacher = student(), dropping()
    targets = sk.Targets(values=Y, teacher=teacher)
    loss = torch.compile(lambda x: sk.sobolev_loss(s, x, targets), backend="aot_eager", fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", sk.SobolevWarning)
        assert all(loss(X).isfinite() for _ in range(3))


def test_nothing_is_said_of_a_call_that_is_refused():
    wrong = sk.Targets(values=Y[:3], teacher=dropping())
    with pytest.raises(ValueError, match="values: expected"):
        sk.sobolev_loss(student(), X, wrong)


def test_a_student_is_not_kept():
    students = [student()]
    warned(lambda: [FRESH["loss"](students[0]) for _ in range(2)])
    count, kept = len(advice.SEEN), weakref.ref(students[0])
    students.clear()
    gc.collect()
    assert kept() is None and len(advice.SEEN) < count


class Slotted:
    """A student that cannot be referred to weakly."""

    __slots__ = ("inner",)

    def __init__(self):
        self.inner = student()

    def __call__(self, x):
        return self.inner(x)


def test_a_student_without_weak_references():
    s = Slotted()
    assert warned(lambda: [FRESH["loss"](s) for _ in range(3)]) == []


@pytest.mark.parametrize("fused", [torch.optim.Adam, torch.optim.SGD])
def test_fused_optimizers_leave_versions_as_they_are(fused):
    s = student()
    optimizer = fused(s.parameters(), lr=0.1, fused=True)
    assert warned(lambda: train(optimizer, lambda: FRESH["loss"](s), 5)) == []


def test_parameters_written_through_their_data():
    s = student()

    def descend():
        for _ in range(5):
            gradients = torch.autograd.grad(FRESH["loss"](s), list(s.parameters()))
            for parameter, gradient in zip(s.parameters(), gradients, strict=True):
                parameter.data -= 0.1 * gradient

    assert warned(descend) == []


def spectrum(x, net):
    return torch.fft.rfft(net(x)).abs()


def counted(x, net):
    return net(x) * (1 + 0 * x.sum().item())


WITHOUT_RULE = {"fft_rfft": spectrum, "item": counted}


@pytest.mark.parametrize("name", WITHOUT_RULE)
def test_a_student_that_goes_to_the_reference(name):
    """Unasked, where tangents would cost less: once, by the name of the operation."""
    s = Call(WITHOUT_RULE[name], dropping(0.0))
    call = lambda s, **more: sk.sobolev_loss(s, X, TARGETS, directions=sk.Directions.sphere(1, seed=1), **more)  # noqa: E731
    assert warned(lambda: call(s, backend="reference")) == []
    (text,) = warned(lambda: [call(s) for _ in range(4)])
    assert text.startswith(f"student: {name} in it has no rule") and 'backend="reference"' in text and len(text) < 600
    assert warned(lambda: [sk.jvp(s, X, X[None]), sk.explain(s, X)]) == []
    assert len(warned(lambda: call(Call(WITHOUT_RULE[name], student())))) == 1


class Spectral:
    """A student who is no module, and may be called by a method too."""

    def __init__(self):
        self.net = dropping(0.0)

    def __call__(self, x):
        return spectrum(x, self.net)

    def named(self, x):
        return self(x)


def spectral(x):
    return spectrum(x, GLOBAL.eval())


class SlottedSpectral:
    __slots__ = ()
    __call__ = staticmethod(spectral)


def doubled(function):
    @wraps(function)
    def twice(x):
        return 2 * function(x)

    return twice


# How one and the same student is made again and again.
OBJECT, SLOTTED, NETWORK = Spectral(), SlottedSpectral(), Call(spectrum, dropping(0.0))
FUNCTIONS = {
    "a lambda": lambda: lambda x: spectrum(x, GLOBAL.eval()),
    "a function": lambda: spectral,
    "a partial": lambda: partial(spectrum, net=GLOBAL.eval()),
    "a partial of a partial": lambda: partial(partial(spectrum), net=GLOBAL.eval()),
    "an object": lambda: OBJECT,
    "an object without weak references": lambda: SLOTTED,
    "its method": lambda: OBJECT.named,
    "a module's method": lambda: NETWORK.forward,
    "a decorated function": lambda: doubled(lambda x: spectrum(x, GLOBAL.eval())),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_goes_to_the_reference(name):
    """Once, also where it is made anew for each call; in the line that calls, and never while that is traced."""
    advice.SEEN.clear()
    made = FUNCTIONS[name]
    assert warned(lambda: sk.jvp(made(), X, X[None], backend="reference")) == []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            sk.jvp(made(), X, X[None])
            sk.sobolev_loss(made(), X, TARGETS, directions=sk.Directions.sphere(1, seed=1))
    (warning,) = caught
    assert str(warning.message).startswith("student: fft_rfft in it has no rule") and warning.filename == __file__
    assert "sk.jvp(made(), X, X[None])" in linecache.getline(__file__, warning.lineno)


def test_functions_of_others():
    """Two decorated by the same, two objects of a class."""
    advice.SEEN.clear()
    others = doubled(spectral), doubled(lambda x: spectral(x)), Spectral(), Spectral()
    assert len(warned(lambda: [sk.jvp(f, X, X[None]) for f in others])) == 4


def test_what_is_put_around_itself():
    """Nobody finds what is within it, so it is taken as it is."""
    advice.SEEN.clear()
    around = lambda x: spectral(x)  # noqa: E731
    around.__wrapped__ = around
    assert len(warned(lambda: [sk.jvp(around, X, X[None]) for _ in range(2)])) == 1


def test_a_function_while_traced():
    torch._dynamo.reset()
    advice.SEEN.clear()
    compiled = torch.compile(lambda x: sk.jvp(spectral, x, x[None])[1], backend="aot_eager")
    with warnings.catch_warnings(record=True) as caught:  # dynamo's own among them
        warnings.simplefilter("always")
        compiled(X)
    assert sk.SobolevWarning not in [warning.category for warning in caught]


def test_students_that_do_not():
    """None has an operation without a rule that could be another, or it is not by streams that its derivatives would
    be taken."""
    v, item = X[None], WITHOUT_RULE["item"]
    assert warned(lambda: sk.jvp(dropping(0.0), X, v)) == []
    assert warned(lambda: sk.vjp(Call(item, student()), X, torch.ones(1, 6, 2))) == []
    few = lambda x, net: spectrum(x, net)[:, :1] + x[:, :1]  # noqa: E731  # by the gradient of its one output
    for s in (Call(few, dropping(0.0)), partial(few, net=GLOBAL.eval())):
        assert warned(lambda s=s: [sk.jvp(s, X, torch.stack([X] * 4)) for _ in range(2)]) == []
    lazy = nn.Sequential(nn.LazyLinear(4), nn.LayerNorm(4), nn.Linear(4, 2))
    assert warned(lambda: [sk.jvp(lazy, X, v) for _ in range(2)]) == []


NOTHING_TO_CHANGE = {
    "a constant": lambda x, net: torch.ones(len(x), 2),
    "steps": lambda x, net: x.round(),
    "a fused call": lambda x, net: sk.jvp(student(), x, X[None])[1][0],
    "a call by gradients": lambda x, net: sk.vjp(net, x, sk.Cotangents.basis())[1][0],
    "a call by the reference": lambda x, net: sk.jvp(net, x, X[None], backend="reference")[1][0],
}


@pytest.mark.parametrize("name", NOTHING_TO_CHANGE)
def test_students_that_have_nothing_to_change(name):
    function, net = NOTHING_TO_CHANGE[name], nn.Sequential(dropping(0.0), nn.LayerNorm(2))
    for s in (Call(function, net), lambda x: function(x, net)):
        assert warned(lambda s=s: sk.jvp(s, X, X[None])) == []


def test_one_that_goes_there_later():
    s = Call(lambda x, net: net(x) if len(x) == 6 else counted(x, net), dropping(0.0))
    assert warned(lambda: sk.jvp(s, X, X[None])) == []
    (text,) = warned(lambda: [sk.jvp(s, X[:4], X[None, :4]) for _ in range(2)])
    assert "item" in text
