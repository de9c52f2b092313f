"""The house: imports run one way, each list of names is one list, and a refused call has no effect."""

import ast
import copy
import inspect
import pickle
from dataclasses import fields
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import torch

import sobolev_kernels as sk
from sobolev_kernels import typed
from sobolev_kernels.backends import core
from sobolev_kernels.math.losses import LIKELIHOODS
from sobolev_kernels.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sobolev_kernels", "bench", "examples", "ptx")


def modules(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "tests" not in parts:
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


KNOWN = {name: path for package in PACKAGES for name, path in modules(package)}


def imported(name, path):
    """The modules of these packages that a file imports anywhere in it, also in a function."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in KNOWN else base for alias in node.names]
        else:
            continue
        yield from (module for module in found if module.split(".")[0] in (*PACKAGES, "python_tests", "conftest"))


@cache
def imports():
    return {name: set(imported(name, path)) - {name} for name, path in KNOWN.items()}


def test_no_circle_of_imports():
    # the face of the package imports all rooms, and those who use the package from within (testing) import the face
    rooms = {name: {m for m in found if m != "sobolev_kernels"} for name, found in imports().items()}
    try:
        order = list(TopologicalSorter(rooms).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")
    assert len(order) >= len(KNOWN) > 60


def test_a_circle_would_be_found():
    with pytest.raises(CycleError):
        list(TopologicalSorter({**imports(), "sobolev_kernels.errors": {"sobolev_kernels.loss"}}).static_order())


def test_the_package_needs_nothing_of_its_users():
    for name, found in imports().items():
        packages = {module.split(".")[0] for module in found}
        assert not packages & {"python_tests", "conftest"}, name
        if name.startswith("sobolev_kernels"):
            assert packages <= {"sobolev_kernels"}, name
            above = any(room in name for room in (".testing", ".command", ".__main__"))
            assert above or not any(".testing" in module for module in found), name


def test_one_version():
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {sk.__version__}\n" in cited
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_keywords_of_the_loss_are_the_fields_of_its_settings():
    names = [field.name for field in fields(Settings)]
    tensors = ["input_scale", "input_jacobian", "sample_weight", "output_weight", "derivative_weight"]
    signature = inspect.signature(sk.sobolev_loss).parameters
    keywords = {n: p.default for n, p in signature.items() if p.kind is p.KEYWORD_ONLY and n not in tensors}
    assert keywords == {field.name: field.default for field in fields(Settings)}
    assert set(typed.LossKeywords.__annotations__) == set(names)
    assert set(typed.AllKeywords.__annotations__) == {*names, *tensors} - {"return_terms"}
    assert set(inspect.signature(sk.SobolevLoss).parameters) == {*names, "input_scale", "output_weight"}
    own = {"student", "x", "of", "derivative_target", "names", "fields", "residual"}
    assert set(inspect.signature(sk.explain).parameters) == {*names, *own}
    for function in (sk.SobolevLoss, lambda **k: sk.explain(sk.MLP(2, 1), torch.zeros(3, 2), **k)):
        with pytest.raises(TypeError, match="reductoin"):
            function(reductoin="sum")


# What is projected on, in two copies that say the same, and one that does not.
SAME = [
    (sk.Directions.sphere(4), sk.Directions.sphere(4), sk.Directions.sphere(3)),
    (sk.Directions.sphere(4, seed=1).at(2), sk.Directions.sphere(4, seed=1).at(2), sk.Directions.sphere(4, seed=1)),
    (sk.Cotangents.basis(), sk.Cotangents.basis(), sk.Directions.basis()),
    (sk.Cotangents.normal(2, shared=True), sk.Cotangents.normal(2, shared=True), sk.Cotangents.normal(2)),
]


@pytest.mark.parametrize("a, b, other", SAME, ids=str)
def test_projections_compare_by_value(a, b, other):
    assert a == b and hash(a) == hash(b) and a != other
    name = a.NAME
    assert Settings(**{name: a}) == Settings(**{name: b}) and hash(Settings(**{name: a})) == hash(Settings(**{name: b}))
    assert copy.deepcopy(a) == a == pickle.loads(pickle.dumps(a))


def test_given_projections_are_equal_to_themselves_alone():
    v = torch.ones(2, 3)
    a, b = sk.Directions.given(v), sk.Directions.given(v)
    assert a == a and a != b and len({a, b, a}) == 2
    settings = Settings(directions=a)
    assert settings == Settings(directions=b) and settings.directions.values is None
    assert not any(isinstance(value, torch.Tensor) for value in vars(settings).values())


LOSS = {
    "directions": sk.Directions.given(torch.eye(3)),
    "weights": [1, 2],
    "value_loss": ("huber", 0.5),
    "wrt": [0, 2, 1],
}
PUBLIC = {
    "Settings": Settings(**LOSS),
    "SobolevLoss": sk.SobolevLoss(**LOSS, input_scale=torch.ones(3), output_weight=torch.ones(2)),
    "Targets": sk.Targets(values=torch.ones(2, 1), tangents=torch.ones(3, 2, 1), directions=torch.ones(3, 2, 3)),
    "Directions": sk.Directions.given(torch.eye(3)),
    "MLP": sk.MLP(3, 2, width=4),
    "Sine": sk.Sine(3.0),
}


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize(
    "twin", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["copy", "pickle"]
)
def test_copies_of_what_is_public(name, twin):
    value = PUBLIC[name]
    assert repr(twin(value)) == repr(value)
    if name == "SobolevLoss":
        loss, x = twin(value), torch.rand(4, 3)
        targets = sk.Targets(values=torch.zeros(4, 2), jacobian=torch.zeros(4, 2, 3))
        assert torch.equal(loss(PUBLIC["MLP"], x, targets), value(PUBLIC["MLP"], x, targets))


def test_what_was_given_moves_with_the_module():
    loss = sk.SobolevLoss(directions=sk.Directions.given(torch.eye(3)), output_weight=torch.ones(1)).double()
    x = torch.rand(4, 3, dtype=torch.float64)
    targets = sk.Targets(values=x[:, :1], jacobian=torch.zeros(4, 1, 3, dtype=torch.float64))
    assert loss(sk.MLP(3, 1, width=4).double(), x, targets).dtype == torch.float64
    assert set(loss.state_dict()) == {"output_weight"}


X, STUDENT, OTHER = torch.rand(5, 3), sk.MLP(3, 2, width=4), sk.MLP(2, 2, width=4)
Y, J = torch.zeros(5, 2), torch.zeros(5, 2, 3)
TARGETS, SMALL = sk.Targets(values=Y, jacobian=J), sk.Targets(values=Y, jacobian=J + 1e-30)
# Each call is refused for one argument.
REFUSED = {
    "inputs": lambda f: sk.sobolev_loss(f, X[0], TARGETS),
    "dtype": lambda f: sk.sobolev_loss(f, X.double(), TARGETS),
    "values": lambda f: sk.sobolev_loss(f, X, sk.Targets(values=Y[:3], jacobian=J)),
    "jacobian": lambda f: sk.sobolev_loss(f, X, sk.Targets(values=Y, jacobian=J[..., :2])),
    "targets": lambda f: sk.sobolev_loss(f, X, sk.Targets(values=Y)),
    "two numbers of outputs": lambda f: sk.sobolev_loss(f, X, sk.Targets(values=Y[:, :1], jacobian=J)),
    "sample_weight": lambda f: sk.sobolev_loss(f, X, TARGETS, sample_weight=torch.ones(3)),
    "output_weight": lambda f: sk.sobolev_loss(f, X, TARGETS, output_weight=torch.ones(5)),
    "derivative_weight": lambda f: sk.sobolev_loss(f, X, TARGETS, derivative_weight=torch.ones(5, 2, 3)),
    "input_scale": lambda f: sk.sobolev_loss(f, X, TARGETS, input_scale=torch.zeros(3)),
    "wrt": lambda f: sk.sobolev_loss(f, X, TARGETS, wrt=[3]),
    "weights": lambda f: sk.sobolev_loss(f, X, TARGETS, weights=(1, -1)),
    "directions": lambda f: sk.sobolev_loss(f, X, TARGETS, directions=sk.Directions.given(torch.ones(1, 2))),
    "cotangents": lambda f: sk.sobolev_loss(f, X, TARGETS, cotangents=sk.Cotangents.given(torch.ones(1, 7))),
    "orthonormal": lambda f: sk.sobolev_loss(f, X, TARGETS, cotangents=sk.Cotangents.orthonormal(4)),
    "precision": lambda f: sk.sobolev_loss(f, X, TARGETS, precision="half"),
    "backend": lambda f: sk.sobolev_loss(f, X, TARGETS, backend="cuda"),
    "check_finite": lambda f: sk.sobolev_loss(f, X, sk.Targets(values=Y / 0, jacobian=J), check_finite=True),
    "teacher": lambda f: sk.sobolev_loss(f, X, sk.Targets(teacher=OTHER)),
    "jvp": lambda f: sk.jvp(f, X, torch.ones(1, 5, 2)),
    "raw directions": lambda f: sk.jvp(f, X, X),
    "weights below zero": lambda f: sk.sobolev_loss(f, X, TARGETS, sample_weight=-torch.ones(5)),
    "small jacobian": lambda f: sk.sobolev_loss(f, X, SMALL, weights="differential-ml"),
    "laplacian": lambda f: sk.laplacian(f, X, sk.Directions.orthonormal(4)),
}


@pytest.mark.parametrize("recognised", [True, False], ids=["MLP", "function"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_call_has_no_effect(name, recognised):
    """No random number is drawn and the student is not run, but on what stands for his input."""
    runs, state = [], torch.get_rng_state()
    student = STUDENT if recognised else Counting(runs)
    with pytest.raises((ValueError, TypeError, NotImplementedError)):
        REFUSED[name](student)
    assert torch.equal(torch.get_rng_state(), state)
    assert not runs


class Counting(torch.nn.Module):
    """A student that is not recognised, and counts its runs."""

    def __init__(self, runs):
        super().__init__()
        self.inner, self.note = copy.deepcopy(STUDENT), runs.append

    def forward(self, x):
        if type(x) is torch.Tensor:
            self.note(len(x))
        return self.inner(x) * 1


@pytest.mark.parametrize(
    "student",
    [lambda x: x[:, 0], lambda x: x.sum(), lambda x: x[:, :1], lambda x: 3],
    ids=["one dimension", "no dimension", "one column", "a number"],
)
@pytest.mark.parametrize(
    "side", [{"directions": sk.Directions.sphere(2)}, {"cotangents": sk.Cotangents.sphere(2)}], ids=str
)
def test_outputs_that_do_not_fit_draw_no_number(student, side):
    """What only running a student tells is looked at before the seed is drawn."""
    state = torch.get_rng_state()
    with pytest.raises((ValueError, TypeError)):
        sk.sobolev_loss(student, X, TARGETS, **side)
    assert torch.equal(torch.get_rng_state(), state)


class OtherCore:
    """A core that was built from other tables."""

    def __init__(self, **changed):
        self.changed = changed

    def tables(self):
        return {name: tuple(rows) for name, rows in core.TABLES.items()} | self.changed


@pytest.mark.parametrize(
    "other, table",
    [
        (OtherCore(Activation=(*core.TABLES["Activation"], "squareplus")), "Activation"),
        (OtherCore(Loss=core.TABLES["Loss"][1:]), "Loss"),
        (OtherCore(Side=("gradients", "tangents")), "Side"),
        (OtherCore(Distribution=("normal", "sphere")), "Distribution"),
        (object(), "Activation, Loss"),
    ],
)
def test_a_core_of_other_tables_is_missing(other, table):
    reason = core.why_missing(other)
    assert reason.startswith("the compiled core is of another version (its tables differ: " + table)
    assert reason.endswith("); build it again")


def test_a_core_without_what_each_step_asks_is_missing():
    lacking = ", ".join(core.AT_EVERY_STEP)
    reason = f"the compiled core is of another version (it has no {lacking}); build it again"
    assert core.why_missing(OtherCore()) == reason


def test_the_core_has_our_tables():
    assert core.MISSING is None and core.why_missing(core._C) is None


def test_numbers_that_the_core_does_not_know_are_refused():
    step = core._C.Step(0, 1, 1, 1, 0, 1, 1)
    for call in (
        lambda: core._C.Step(2, 1, 1, 1, 0, 1, 1),
        lambda: step.layers([(1, 1, (len(sk.ACTIVATIONS),), core.SOMEWHERE, None, None, None)]),
        lambda: step.layers([(1, 1, (-1,), core.SOMEWHERE, None, None, None)]),
        lambda: step.loss([((len(LIKELIHOODS) + len(sk.LOSSES) + len(sk.COUPLED),), 1.0, 1.0)], False),
        lambda: step.directions(2, 0, None, 0, 0, False, 1.0),
        lambda: step.directions(0, len(core.TABLES["Distribution"]), None, 0, 0, False, 1.0),
        lambda: step.residuals(3, [], None, None, None),
        lambda: step.residuals(1, [(3, core.SOMEWHERE)], None, None, None),
        lambda: step.plan(2, 1, 1, False, False, False, 1),
    ):
        with pytest.raises(ValueError, match="that this core was built with"):
            call()


def test_what_each_step_asks_is_refused_of_others():
    """The three functions of the core that take Python's objects as they lie."""
    step, a = core._C.Step(0, 1, 1, 1, 0, 1, 1), torch.ones(3)
    step.layers([(1, 1, (0,), core.SOMEWHERE, None, None, None)])
    step.input(core.SOMEWHERE)
    for addresses, tensors in (([], []), ([a.data_ptr()], []), ([a.data_ptr()] * 3, []), ([1, 0], []), ([1, 1], [a])):
        with pytest.raises(ValueError, match="as many addresses as it has"):
            core._C.mlp_sobolev_at(step, "", addresses, tensors, 0, 0)
    for arguments in ((), (step,), (step, "", (), [], 0, 0), (1, "", [], [], 0, 0), (step, 1, [], [], 0, 0)):
        with pytest.raises(ValueError):
            core._C.mlp_sobolev_at(*arguments)
    for tensors, needs, found in (([a], (12, 4), [a.data_ptr()]), ([a[1:]], (8, 4), [a[1:].data_ptr()]), ([], (), [])):
        assert core._C.addresses(tensors, needs) == found
    freed = torch.ones(3)
    freed.untyped_storage().resize_(0)
    for tensors, needs in (([a], (13, 4)), ([a[1:]], (12, 4)), ([freed], (12, 4)), ([a], (12, 1 << 40))):
        assert core._C.addresses(tensors, needs) is None
    for arguments in ((), ([a], (12,)), ((a,), (12, 4))):
        with pytest.raises(TypeError):
            core._C.addresses(*arguments)
    with pytest.raises(AttributeError):
        core._C.addresses([3], (4, 4))
    with pytest.raises(TypeError):
        core._C.read(a, (), [], [])
    assert core._C.read(a, ({}, None, None), [], []) is False
