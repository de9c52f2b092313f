"""The CUDA backend on the PTX machine: which steps it takes, in words, and what it is told of them."""

from unittest.mock import patch

import pytest
import torch

import sobolev_kernels as sk
from ptx import missing
from ptx.compile import missing as missing_tool
from python_tests.test_chain import assert_right_in_single, one_process  # noqa: F401
from sobolev_kernels import call
from sobolev_kernels.backends import cuda
from sobolev_kernels.testing.compare import step
from sobolev_kernels.testing.problems import SMALL, Shape, asking, cotangents_of, data, directions_of

reason = missing() or missing_tool("nvcc") or (None if cuda.core._C else cuda.MISSING)
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx.cuda_on_ptx import compare, on_ptx  # noqa: E402

ramp = torch.linspace(0.5, 2, SMALL.N), torch.linspace(2, 1, SMALL.O)


SIDES = {"directions": (directions_of, False), "cotangents": (cotangents_of, False), "outputs": (directions_of, True)}


def compared(side, numbers, kind, **settings):
    made, outputs = SIDES[side]
    return compare(numbers, made(kind, SMALL), outputs=outputs, **settings)


@pytest.mark.parametrize("side", SIDES)
def test_strides_of_0(side):
    """Numbers that torch expands; and weights of samples and outputs of which every second number is meant."""
    numbers = data(SMALL, "tanh")
    for parameter in numbers.student.parameters():
        parameter.data = parameter.data[..., :1].expand_as(parameter.data)
    numbers.x, numbers.y = numbers.x[:, :1].expand_as(numbers.x), numbers.y[:1].expand_as(numbers.y)
    numbers.jacobian = numbers.jacobian[:1].expand_as(numbers.jacobian)
    wide = [torch.stack([weight, weight * torch.nan], -1)[..., 0] for weight in ramp]
    kind = "given" if side == "directions" else "basis"
    compared(side, numbers, kind, precision="ieee", sample_weight=wide[0], output_weight=wide[1])


SOME = (torch.arange(SMALL.N * SMALL.O * SMALL.D) % 5 > 1).float().reshape(SMALL.N, SMALL.O, SMALL.D)


def missing_labels(numbers, known=SOME):
    """NaN, where the first of three samples, the first output and `known` say so."""
    counts = ((torch.arange(SMALL.N) % 3 > 0)[:, None] & torch.tensor([False, True]))[..., None]
    jacobian = torch.where(counts & (known != 0), numbers.jacobian, torch.nan)
    return sk.Targets(values=torch.where(counts[..., 0], numbers.y, torch.nan), jacobian=jacobian)


MISSING = {"sample_weight": (torch.arange(SMALL.N) % 3).float(), "output_weight": torch.tensor([0.0, 1.5])}


@pytest.mark.parametrize("outputs", [False, True])
def test_missing_entries(outputs):
    """Each with a weight of its own, and a Jacobian of NaN where it is 0."""
    numbers = data(SMALL, "tanh")
    for projections in (sk.Directions.basis(), sk.Cotangents.basis()):
        compare(
            numbers, projections, missing_labels, precision="ieee", outputs=outputs, derivative_weight=1.5 * SOME,
            **MISSING,
        )  # fmt: skip
    columns = SOME[:, 0] != 0
    known = lambda d: missing_labels(d, columns[:, None])  # noqa: E731
    for_columns = {"derivative_weight": columns, **MISSING}
    compare(numbers, directions_of("sphere", SMALL), known, precision="ieee", outputs=outputs, **for_columns)


def test_directions_that_all_samples_share():
    compare(data(SMALL, "gelu", last="sigmoid"), sk.Directions.sphere(3, seed=5, shared=True))


def test_layers_may_differ():
    torch.manual_seed(0)
    numbers = data(SMALL, "tanh")
    numbers.student = torch.nn.Sequential(
        torch.nn.Linear(3, 40), torch.nn.SiLU(), torch.nn.Linear(40, 7, bias=False), torch.nn.Sigmoid(),
        torch.nn.Linear(7, 17), torch.nn.Tanh(), torch.nn.Linear(17, 2),
    )  # fmt: skip
    for side in SIDES:
        compared(side, numbers, "sphere", precision="tf32")


def test_what_many_blocks_have_left():
    """Of nine of them a warp of finish_step sums two."""
    shape = Shape(20 * 32 - 3, 2, 16, 1, 1, 1, "at least ten tiles")
    done = compare(data(shape, "tanh"), directions_of("sphere", shape), tile=64, blocks=9)
    assert list(done.backend.results) == ["step", "finish"]


TOO_MUCH = {
    "hidden layers are wider than 128": Shape(4, 3, 130, 1, 2, 1, ""),
    r"takes \d+ bytes of shared memory, a block has 16384": Shape(4, 60, 128, 3, 2, 1, ""),
}


@pytest.mark.parametrize("words", TOO_MUCH)
def test_students_that_are_refused(words):
    numbers = data(TOO_MUCH[words], "tanh")
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    with on_ptx(limit=16 << 10), pytest.raises(NotImplementedError, match=words):
        sk.sobolev_loss(numbers.student, numbers.x, targets, backend="cuda", precision="bf16")


REFUSED = {
    "depend on each other": {"directions": sk.Directions.orthonormal(2, seed=1)},
    "directions that require grad, which a dense": {"directions": asking(directions_of("given", SMALL))},
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_in_words(words):
    numbers = data(SMALL, "tanh")
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    with on_ptx(), pytest.raises(NotImplementedError, match=words):
        sk.sobolev_loss(numbers.student, numbers.x, targets, backend="cuda", **REFUSED[words])


def test_without_a_gpu_the_backend_refuses():
    with on_ptx() as backend:
        numbers = data(SMALL, "tanh")
        sk.sobolev_loss(
            numbers.student, numbers.x, sk.Targets(values=numbers.y, jacobian=numbers.jacobian), backend="cuda"
        )
    assert "on cpu, not on an NVIDIA GPU" in cuda.supports(backend.problem)


@pytest.mark.parametrize("settings", [{}, {"reduction": "none"}, {"sample_weight": ramp[0], "weights": (0.5, 0.0)}])
def test_a_call_like_one_before(settings):
    """By the step that is kept, its backward too: the same bits, at other addresses."""
    numbers, projections = data(SMALL, "tanh"), directions_of("sphere", SMALL)
    with on_ptx():
        first = step(numbers, projections, "cuda", **settings)
        numbers.x, numbers.y = numbers.x.clone(), numbers.y.clone()
        with patch.object(call, "prepare", side_effect=AssertionError("the long way")):
            second = step(numbers, projections, "cuda", **settings)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_whole_graphs():
    """torch.compile(fullgraph=True), through the choice of a backend too."""
    numbers = data(SMALL, "tanh")
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    v = directions_of("sphere", SMALL).tensor(numbers.x)

    def loss(x):
        return sk.sobolev_loss(numbers.student, x, targets, directions=sk.Directions.given(v), backend="cuda")

    with on_ptx():
        torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="aot_eager")(numbers.x), loss(numbers.x))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["AveragedModel", "functional", "weight norm", "LoRA", "DDP", "FSDP"])
def test_a_dressed_mlp(name, one_process, monkeypatch):  # noqa: F811
    """Of the others it is known that they are given as a bare one is (python_tests/test_cuda_launches.py)."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with on_ptx():
        assert_right_in_single(name, "cuda")
