"""What a step by CUDA asks of the device and of its host: two launches, and the short way. Without a GPU (dry.py)."""

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import sobolev_kernels as sk
from python_tests.test_chain import DRESSES, WRAPPERS, X, assert_right_in_single, one_process, whole_steps  # noqa: F401
from sobolev_kernels import call, directions, kept, ops
from sobolev_kernels.backends import core, cpu, cuda
from sobolev_kernels.math import directions as math_directions
from sobolev_kernels.testing import dry
from sobolev_kernels.testing.problems import SMALL, data, directions_of

if core._C is None:
    pytest.skip(cuda.MISSING, allow_module_level=True)

MAKES = ("aten::empty", "aten::empty_like", "aten::empty_strided")  # no kernel
NUMBERS = data(SMALL, "tanh")
TARGETS = sk.Targets(values=NUMBERS.y, jacobian=NUMBERS.jacobian)
GIVEN = directions_of("given", SMALL)
ramp = torch.linspace(0.5, 2, SMALL.N)
# What is asked for, and the launches of its forward and of its backward
ASKED = {
    "a step of training": ({}, 2, 0),
    "and its terms": ({"return_terms": True}, 2, 2),
    "weights, the other term alone": ({"sample_weight": ramp, "output_weight": ramp[:2], "weights": (0.0, 1.0)}, 2, 0),
    "a loss for each sample": ({"reduction": "none"}, 1, 2),
}  # fmt: skip


class Launches:
    """In the place of what launches: counts the kernels, and keeps how they were told."""

    def __init__(self):
        self.count, self.told = 0, []

    def __call__(self, launch, where, scratch):
        told = dry.prepared(launch, where, scratch)
        self.count += 1 if told[3] is None else 2
        self.told.append(where)

    def of(self, call):
        before = self.count
        result = call()
        return self.count - before, result


def forward(x=NUMBERS.x, **settings):
    if not {"directions", "cotangents"} & set(settings):
        settings["directions"] = GIVEN
    return sk.sobolev_loss(NUMBERS.student, x, TARGETS, backend="cuda", **settings)


class Operations(TorchDispatchMode):
    """Names what torch is asked to do, but for what launches nothing."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        aliases = any(r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns)
        if not aliases and function._schema.name not in MAKES:
            self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("asked", ASKED)
def test_launches_of_run(asked):
    """The long way: of torch nothing at all in `run`."""
    settings, forwards, backwards = ASKED[asked]
    launches, seen = Launches(), []
    run = cuda.run

    def watched(*args):
        with Operations() as operations:
            run(*args)
        seen.extend(operations.names)

    backend = type("Backend", (), {**vars(dry.BACKEND), "run": staticmethod(watched)})
    del backend.kept  # so that each call goes by `run`
    for name in ("supports", "plan"):
        setattr(backend, name, staticmethod(vars(backend)[name]))
    x = NUMBERS.x.clone().requires_grad_()
    with dry.on_cpu(launches, backend):
        count, result = launches.of(lambda: forward(x, **settings))
        assert count == forwards
        loss = result.loss if settings.get("return_terms") else result
        count, _ = launches.of(loss.sum().backward)
        assert count == backwards and seen == []


@pytest.mark.parametrize("asked", ASKED)
def test_the_short_way(asked):
    """A second call like the first one looks nothing up, tells the core nothing again, and launches the same."""
    settings, forwards, backwards = ASKED[asked]
    launches, x, names = Launches(), NUMBERS.x.clone().requires_grad_(), []
    once = lambda: forward(x, **settings)  # noqa: E731
    loss_of = lambda result: (result.loss if settings.get("return_terms") else result).sum()  # noqa: E731
    compute = kept.Call.compute

    def watched(*args):
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            made = compute(*args)
        names.extend(event.name for event in recorded.events())
        return made

    no = {"side_effect": AssertionError("the long way")}
    told = [patch.object(core, "step_of", **no), patch.object(cuda, "run", **no), patch.object(cuda, "launch_of", **no)]
    empty = patch.multiple(ops, empty=torch.empty, empty_like=torch.empty_like)
    with dry.on_cpu(launches), empty, patch.object(kept.Call, "compute", watched):
        for _ in range(2):  # a step of a backward is kept at its second sight
            loss_of(once()).backward()
        names.clear()
        with patch.object(call, "prepare", **no), told[0], told[1], told[2]:
            count, result = launches.of(once)
            assert count == forwards and set(names) <= {*MAKES}
            if asked != "and its terms":  # whose cotangents are numbers of the CPU here, weights of another step
                assert launches.of(loss_of(result).backward)[0] == backwards


def test_the_cotangent_of_a_device_is_not_waited_for():
    """Finished gradients are multiplied by it, in one call; that is not part of the step."""
    with dry.on_cpu(), patch.object(ops, "is_one", return_value=False):
        loss = forward()
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            loss.backward()
    names = [event.name for event in recorded.events()]
    assert names.count("aten::_foreach_mul") == 1 and "aten::item" not in names


def test_outputs_go_to_their_places():
    """Loss and terms are written by the kernels: `finished` losses without terms have no place for them."""
    launches = Launches()
    with dry.on_cpu(launches):
        first, second = forward(), forward()
    parameters = len(list(NUMBERS.student.parameters()))
    assert [len(writes) for _, writes, *_ in launches.told] == [2 + parameters, 1 + parameters]
    assert launches.told[1][1][0] == second.data_ptr() and launches.told[0][1][0] == first.data_ptr()


# ---- The seed while a graph is captured ----


@pytest.mark.parametrize(
    "projections", [{"directions": sk.Directions.sphere(2)}, {"cotangents": sk.Cotangents.normal(2)}]
)
def test_the_seed_of_a_graph_is_a_number_of_its_device(projections):
    """Two steps, the long way and the short one: kernels are told where it is, and nobody looks at it."""
    launches, seeds, drawn = Launches(), [], []
    randint = torch.randint

    def on_device(*args, device, **how):
        drawn.append(device)
        seeds.append(randint(*args, device="cpu", **how))
        return seeds[-1]

    with (
        dry.on_cpu(launches), patch.object(directions, "is_capturing", lambda device: True),
        patch.object(torch, "randint", on_device),
        patch.object(math_directions, "in_memory_of_device", lambda seed: True),
    ):  # fmt: skip
        for _ in range(2):
            with torch.no_grad():
                forward(**projections)
        assert drawn == [NUMBERS.x.device] * 2
        assert [told[2:] for told in launches.told] == [(0, 0, seed.data_ptr()) for seed in seeds]
    with dry.on_cpu(launches), patch.object(directions, "is_capturing", lambda device: True):
        for _ in range(2):
            forward(directions=sk.Directions.sphere(2, seed=2**40 + 5).at(7))
        forward(directions=sk.Directions.sphere(2, seed=3))
    assert [told[2:4] for told in launches.told[2:]] == [(2**40 + 5, 7)] * 2 + [(3, 0)]  # constants of the graph
    assert not any(any(told[4:]) for told in launches.told[2:])
    assert not directions.is_capturing(torch.device("cpu"))


@pytest.mark.parametrize("kind", ["sphere", "orthonormal", "coordinate"])
def test_vectors_drawn_of_a_seed_on_the_device(kind):
    """By PyTorch, for whoever is given what is drawn: the same as of numbers."""
    x, seed = torch.zeros(5, 3), torch.tensor([2**61 + 12345, 2**33 + 7])
    told = math_directions.draw(kind, *seed.tolist(), 2, 5, 3, False, 1.0, x.dtype, x.device)
    known = math_directions.draw(kind, *seed.unbind(), 2, 5, 3, False, 1.0, x.dtype, x.device)
    assert torch.equal(told, known)


# ---- Students in a dress ----

# In float32 no chain, or without a hidden layer, which the kernels ask for
OTHERS = "in place", "FSDP of each layer", "a layer alone"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", [name for name in (*DRESSES, *WRAPPERS) if name not in OTHERS])
def test_a_dressed_mlp_is_given_as_a_bare_one(name, one_process, monkeypatch):  # noqa: F811
    """The same problem but for its layers, in as many launches; and the CPU's core, which is run in their place,
    computes what is right from what they are given."""
    launches, problems = Launches(), []

    def run(problem, *tensors):
        problems.append(problem)
        cuda.run(problem, *tensors)
        cpu.run(problem, *tensors)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    backend = SimpleNamespace(supports=dry.BACKEND.supports, plan=cuda.plan, run=run)
    with dry.on_cpu(launches, backend):
        bare = sk.MLP(X.shape[1], 2, width=5, depth=1)
        whole_steps(bare, bare, "cuda")
        assert_right_in_single(name, "cuda")
    assert launches.count == 8 and len(problems) == 4
    for of_bare, of_dressed in zip(problems[:2], problems[2:], strict=True):
        layers = {field: getattr(of_dressed, field) for field in ("widths", "biases", "activations")}
        assert of_dressed == replace(of_bare, **layers)
