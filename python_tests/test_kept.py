"""A call like one before goes a short way (kept.py): to the same bits, whatever was changed between the two."""

import copy
import gc
import os
import pickle
import threading
import weakref
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import sobolev_kernels as sk
from sobolev_kernels import call, kept, steps
from sobolev_kernels.settings import settings_with
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import forget

N, D, O, P = 6, 3, 2, 2
FIXED = sk.Directions.sphere(P, seed=3)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def student(activation=None, dtype=torch.float32):
    net = nn.Sequential(nn.Linear(D, 5), activation or nn.Softplus(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, O))
    for i, parameter in enumerate(net.parameters()):
        parameter.data = random(*parameter.shape, seed=i)
    return net.to(dtype)


def teacher():
    net = nn.Sequential(nn.Linear(D, 7), nn.Softplus(), nn.Linear(7, O))
    for i, parameter in enumerate(net.parameters()):
        parameter.data = random(*parameter.shape, seed=30 + i)
    return net


class Asked:
    """What a call is made of, to be changed between two of them."""

    def __init__(self, activation=None, taught=False):
        self.student, self.x = student(activation), random(N, D, seed=20)
        self.targets = {"values": random(N, O, seed=21), "jacobian": random(N, O, D, seed=22)}
        if taught:
            self.targets = {"teacher": teacher()}
        self.settings = {"directions": FIXED}
        self.around = nullcontext

    @property
    def teacher(self):
        return self.targets["teacher"]

    def call(self):
        with self.around():
            return sk.sobolev_loss(self.student, self.x, sk.Targets(**self.targets), **self.settings)

    def parameters(self):
        return [p for p in (self.x, *self.student.parameters()) if p.requires_grad]

    def results(self):
        """The numbers of a call, or what it is refused with."""
        try:
            value = self.call()
            loss = value[0] if isinstance(value, tuple) else value
            gradients = ()
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss.sum(), self.parameters(), allow_unused=True)
            return [*(value if isinstance(value, tuple) else (value,)), *gradients]
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            return [type(error), str(error)]


def same(a, b):
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return a is b or a == b
    return a.dtype == b.dtype and a.requires_grad == b.requires_grad and torch.equal(a.nan_to_num(7), b.nan_to_num(7))


@contextmanager
def the_short_way_alone():
    with patch.object(call, "prepare", side_effect=AssertionError("the long way")):
        yield


def swap(asked, tensor):
    asked.student[0].weight.data = tensor


def put(where, name, value):
    setattr(where, name, value)


def assigned(asked):
    state = {name: tensor + 1 for name, tensor in asked.student.state_dict().items()}
    asked.student.load_state_dict(state, assign=True)


def doubled_input(module, args):
    return (2 * args[0],)


def doubled(module, args, output=None):
    return 2 * output


def misaligned(tensor):
    """The same numbers at an address that is no multiple of four."""
    buffer = bytearray(tensor.numel() * 4 + 8)
    start = 2
    out = torch.frombuffer(buffer, dtype=torch.float32, count=tensor.numel(), offset=start).view(tensor.shape)
    out.copy_(tensor)
    return out


def another_width(asked):
    asked.student[2], asked.student[4] = nn.Linear(5, 7), nn.Linear(7, O)


def a_tensor(asked):
    del asked.student[0].weight
    asked.student[0].weight = random(5, D, seed=41)


def every(asked, dtype):
    asked.student.to(dtype)
    asked.x = asked.x.to(dtype)
    asked.targets = {name: tensor.to(dtype) for name, tensor in asked.targets.items()}


def without_bias(asked):
    asked.student[2].bias = None


def bias_in_a_buffer(asked):
    del asked.student[2].bias
    asked.student[2].register_buffer("bias", torch.ones(4))


def another_class(asked):
    class Twice(nn.Linear):
        def forward(self, z):
            return 2 * super().forward(z)

    asked.student[2].__class__ = Twice


CHANGES = {
    "nothing": lambda a: None,
    "numbers in place": lambda a: a.student[0].weight.data.add_(1),
    "a layer replaced": lambda a: a.student.__setitem__(2, nn.Linear(5, 4)),
    "a layer of another width": another_width,
    "a layer taken out": lambda a: a.student.__delitem__(3),
    "a layer added": lambda a: a.student.append(nn.Tanh()),
    "a parameter replaced": lambda a: put(a.student[0], "weight", nn.Parameter(random(5, D, seed=40))),
    "a tensor for a parameter": a_tensor,
    "no bias": without_bias,
    "a bias that is a buffer": bias_in_a_buffer,
    "a bias taken away": lambda a: delattr(a.student[2], "bias"),
    "data swapped": lambda a: swap(a, random(5, D, seed=42)),
    "data of other strides": lambda a: swap(a, random(D, 5, seed=43).t()),
    "data of another shape": lambda a: swap(a, random(5, D + 1, seed=43)),
    "data of another dtype": lambda a: swap(a, random(5, D, seed=43).double()),
    "data freed": lambda a: a.student[0].weight.untyped_storage().resize_(0),
    "data cut short": lambda a: a.student[0].weight.untyped_storage().resize_(8),
    "state assigned": assigned,
    "all in float64": lambda a: every(a, torch.float64),
    "the student alone in float64": lambda a: a.student.double(),
    "half precision": lambda a: every(a, torch.bfloat16),
    "a hook of the student": lambda a: a.student.register_forward_hook(doubled),
    "a hook of a layer": lambda a: a.student[2].register_forward_hook(doubled),
    "a hook before a layer": lambda a: a.student[2].register_forward_pre_hook(doubled_input),
    "a hook of a layer's backward": lambda a: a.student[2].register_full_backward_hook(lambda m, i, o: (2 * i[0],)),
    "a hook before its backward": lambda a: a.student[2].register_full_backward_pre_hook(lambda m, o: (2 * o[0],)),
    "a hook of all modules": lambda a: put(a, "around", lambda: register_module_forward_hook(lambda *_: None)),
    "a forward of its own": lambda a: put(a.student[2], "forward", lambda z: z[:, :4]),
    "another class": another_class,
    "weight norm": lambda a: nn.utils.parametrizations.weight_norm(a.student[2]),
    "an activation's number": lambda a: put(a.student[1], "beta", 2.0),
    "another activation": lambda a: a.student.__setitem__(1, nn.SiLU()),
    "a parameter without gradient": lambda a: a.student[2].weight.requires_grad_(False),
    "no gradients": lambda a: a.student.requires_grad_(False),
    "a gradient of the inputs": lambda a: a.x.requires_grad_(),
    "no_grad": lambda a: put(a, "around", torch.no_grad),
    "inference mode": lambda a: put(a, "around", torch.inference_mode),
    "autocast": lambda a: put(a, "around", lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    "another batch": lambda a: put(a, "x", random(N, D, seed=44)),
    "a smaller batch": lambda a: (put(a, "x", a.x[:4]), put(a, "targets", {k: t[:4] for k, t in a.targets.items()})),
    "inputs of other strides": lambda a: put(a, "x", random(D, N, seed=45).t()),
    "inputs at an odd address": lambda a: put(a, "x", misaligned(a.x)),
    "inputs to be negated": lambda a: put(a, "x", torch._neg_view(a.x)),
    "inputs freed": lambda a: (put(a, "x", a.x.clone()), a.x.untyped_storage().resize_(0)),
    "expanded inputs": lambda a: put(a, "x", a.x[:1].expand(N, D)),
    "NumPy's inputs": lambda a: put(a, "x", a.x.numpy()),
    "targets of other strides": lambda a: a.targets.update(jacobian=random(D, O, N, seed=46).permute(2, 1, 0)),
    "targets of another shape": lambda a: a.targets.update(jacobian=random(N, O, D + 1)),
    "targets at an odd address": lambda a: a.targets.update(values=misaligned(a.targets["values"])),
    "other targets": lambda a: (a.targets.pop("jacobian"), a.targets.update(tangents=random(P, N, O, seed=47))),
    "targets' own directions": lambda a: (a.settings.clear(), a.targets.update(directions=random(P, N, D, seed=48))),
    "the same seed at another place": lambda a: a.settings.update(directions=FIXED.at(7)),
    "targets' directions at another place": lambda a: (a.settings.clear(), a.targets.update(directions=FIXED.at(7))),
    "other directions": lambda a: a.settings.update(directions=sk.Directions.sphere(P, seed=4)),
    "given directions": lambda a: a.settings.update(directions=sk.Directions.given(random(P, N, D, seed=49))),
    "cotangents": lambda a: a.settings.update(directions=None, cotangents=sk.Cotangents.sphere(2, seed=1)),
    "the exact loss": lambda a: a.settings.update(directions=None, derivatives="exact"),
    "columns": lambda a: a.targets.update(jacobian=random(N, O, 2)) or a.settings.update(wrt=[2, 0]),
    "leading columns": lambda a: a.targets.update(jacobian=random(N, O, 2)) or a.settings.update(wrt=[0, 1]),
    "units": lambda a: a.settings.update(input_scale=torch.tensor([1.0, 2.0, 3.0])),
    "units of their own": lambda a: a.settings.update(weights="differential-ml"),
    "weights of samples": lambda a: a.settings.update(sample_weight=random(N).abs()),
    "negative weights": lambda a: a.settings.update(sample_weight=-random(N).abs()),
    "a mask": lambda a: a.settings.update(derivative_weight=random(N, D) > 0),
    "terms": lambda a: a.settings.update(return_terms=True),
    "a loss of each sample": lambda a: a.settings.update(reduction="none"),
    "another loss": lambda a: a.settings.update(value_loss=("huber", 0.5)),
    "check_finite": lambda a: (a.settings.update(check_finite=True), a.x.__setitem__((0, 0), torch.nan)),
    "a teacher": lambda a: put(a, "targets", {"teacher": lambda x: x[:, :O].sin()}),
    "another backend": lambda a: a.settings.update(backend="reference"),
}  # fmt: skip


def taught_by(asked, function):
    asked.targets["teacher"] = function


def both_in(asked, dtype):
    asked.student.to(dtype), asked.teacher.to(dtype)
    asked.x = asked.x.to(dtype)


def without_his_bias(asked):
    asked.teacher[2].bias = None


# Of a call with a teacher
CHANGES_WITH_A_TEACHER = {
    "nothing": lambda a: None,
    "the student's numbers": lambda a: a.student[0].weight.data.add_(1),
    "the student without gradients": lambda a: a.student.requires_grad_(False),
    "numbers": lambda a: a.teacher[0].weight.data.add_(1),
    "another": lambda a: taught_by(a, nn.Linear(D, O)),
    "the student": lambda a: taught_by(a, a.student),
    "a copy of the student": lambda a: taught_by(a, copy.deepcopy(a.student)),
    "a layer of the student": lambda a: a.teacher.__setitem__(2, nn.Sequential(nn.Linear(7, 4), a.student[4])),
    "a parameter of his is the student's": lambda a: put(a.teacher[2], "bias", a.student[4].bias),
    "a function": lambda a: taught_by(a, lambda x: x[:, :O].sin()),
    "a function of him": lambda a: taught_by(a, lambda x, him=a.teacher: 2 * him(x)),
    "no module of the table": lambda a: a.teacher.__setitem__(1, nn.Hardtanh()),
    "dropout in eval mode": lambda a: a.teacher.insert(1, nn.Dropout().eval()),
    "a layer replaced": lambda a: a.teacher.__setitem__(0, nn.Linear(D, 7)),
    "a layer of another width": lambda a: taught_by(a, nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, O))),
    "other outputs": lambda a: a.teacher.__setitem__(2, nn.Linear(7, O + 1)),
    "other inputs": lambda a: a.teacher.__setitem__(0, nn.Linear(D + 1, 7)),
    "no bias": without_his_bias,
    "another activation": lambda a: a.teacher.__setitem__(1, nn.Tanh()),
    "an activation's number": lambda a: put(a.teacher[1], "beta", 3.0),
    "data swapped": lambda a: put(a.teacher[0].weight, "data", random(7, D, seed=42)),
    "data of other strides": lambda a: put(a.teacher[0].weight, "data", random(D, 7, seed=43).t()),
    "data at an odd address": lambda a: put(a.teacher[0].weight, "data", misaligned(random(7, D, seed=43))),
    "data of another dtype": lambda a: a.teacher.double(),
    "all in float64": lambda a: both_in(a, torch.float64),
    "half precision": lambda a: both_in(a, torch.bfloat16),
    "data freed": lambda a: a.teacher[0].weight.untyped_storage().resize_(0),
    "data cut short": lambda a: a.teacher[0].weight.untyped_storage().resize_(8),
    "frozen": lambda a: a.teacher.requires_grad_(False),
    "a hook of his": lambda a: a.teacher.register_forward_hook(doubled),
    "a hook of a layer of his": lambda a: a.teacher[0].register_forward_hook(doubled),
    "a forward of his own": lambda a: put(a.teacher[2], "forward", lambda z: z[:, :O]),
    "values of their own": lambda a: a.targets.update(values=random(N, O, seed=21)),
    "a jacobian beside him": lambda a: a.targets.update(jacobian=random(N, O, D)),
    "targets instead": lambda a: put(a, "targets", Asked().targets),
    "directions of the targets": lambda a: (a.settings.clear(), a.targets.update(directions=random(P, N, D, seed=48))),
    "cotangents": lambda a: a.settings.update(directions=None, cotangents=sk.Cotangents.normal(2, seed=1)),
    "the exact loss": lambda a: a.settings.update(directions=None, derivatives="exact"),
    "orthonormal directions": lambda a: a.settings.update(directions=sk.Directions.orthonormal(P, seed=3)),
    "second derivatives": lambda a: a.settings.update(order=2),
    "values alone": lambda a: a.settings.update(weights=(1.0, 0.0)),
    "columns": lambda a: a.settings.update(wrt=[2, 0]),
    "units": lambda a: a.settings.update(input_scale=torch.tensor([1.0, 2.0, 3.0])),
    "weights of samples": lambda a: a.settings.update(sample_weight=random(N).abs()),
    "a mask": lambda a: a.settings.update(derivative_weight=random(N, D) > 0),
    "terms": lambda a: a.settings.update(return_terms=True),
    "a loss of each sample": lambda a: a.settings.update(reduction="none"),
    "a gradient of the inputs": lambda a: a.x.requires_grad_(),
    "no_grad": lambda a: put(a, "around", torch.no_grad),
    "inference mode": lambda a: put(a, "around", torch.inference_mode),
    "autocast": lambda a: put(a, "around", lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    "a smaller batch": lambda a: put(a, "x", a.x[:4]),
    "check_finite": lambda a: (a.settings.update(check_finite=True), a.teacher[0].bias.data.fill_(torch.inf)),
}
EVERY_CHANGE = [(False, name) for name in CHANGES] + [(True, name) for name in CHANGES_WITH_A_TEACHER]


@pytest.mark.filterwarnings("ignore:student. .* with hooks of its backward:sobolev_kernels.SobolevWarning")
@pytest.mark.parametrize("taught, change", EVERY_CHANGE, ids=[f"{n}, taught" if t else n for t, n in EVERY_CHANGE])
def test_whatever_is_changed_between_two_calls(taught, change, request):
    asked = Asked(taught=taught)
    before = [asked.results() for _ in range(3)]
    assert all(map(same, before[0], before[1])) and all(map(same, before[0], before[2]))
    undo = (CHANGES_WITH_A_TEACHER if taught else CHANGES)[change](asked)
    if hasattr(undo, "remove"):
        request.addfinalizer(undo.remove)
    got = [asked.results() for _ in range(3)]
    forget()
    expected = asked.results()
    for results in got:
        assert len(results) == len(expected) and all(map(same, results, expected)), (results, expected)


@pytest.mark.parametrize("name, known", [("SOBOLEV_BACKEND", "reference"), ("SOBOLEV_ISA", "baseline")])
@pytest.mark.parametrize("known_at_all", [True, False])
def test_variables(name, known, known_at_all, monkeypatch):
    value = known if known_at_all else "none such"
    asked = Asked()
    asked.results(), asked.results()
    monkeypatch.setitem(os.environ, name, value)
    got = asked.results()
    forget()
    assert all(map(same, got, asked.results()))
    assert ("none such" in str(got)) == (value == "none such")


def test_threads():
    asked, threads = Asked(), torch.get_num_threads()
    asked.x = random(300, D, seed=1)
    asked.targets = {"values": random(300, O, seed=2), "jacobian": random(300, O, D, seed=3)}
    asked.results(), asked.results()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        got = asked.results()
        forget()
        assert all(map(same, got, asked.results()))
    finally:
        torch.set_num_threads(threads)


def test_a_class_whose_forward_is_replaced(monkeypatch):
    asked = Asked()
    before = asked.results(), asked.results()
    with monkeypatch.context() as within:
        within.setattr(nn.Tanh, "forward", lambda self, z: z)
        replaced = asked.results()
    assert not same(before[1][0], replaced[0])
    assert all(map(same, before[0], asked.results()))


ORDINARY = {
    "directions": {},
    "fresh": {"directions": sk.Directions.sphere(P)},
    "given": {"directions": sk.Directions.given(random(P, N, D, seed=5))},
    "exact": {"directions": None, "derivatives": "exact"},
    "cotangents": {"directions": None, "cotangents": sk.Cotangents.normal(2)},
    "terms": {"return_terms": True},
    "none": {"reduction": "none"},
    "sum": {"reduction": "sum"},
    "weighed": {"sample_weight": torch.ones(N), "output_weight": torch.ones(O)},
    "coupled": {"derivative_loss": "cosine"},
}


TAUGHT = {
    "second derivatives": {"order": 2},
    "values alone": {"weights": (1.0, 0.0)},
    "cotangents given": {"directions": None, "cotangents": sk.Cotangents.given(random(1, N, O, seed=5))},
}


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("name", [*ORDINARY, *TAUGHT])
@pytest.mark.filterwarnings("ignore::sobolev_kernels.SobolevWarning")
def test_the_second_call_goes_the_short_way(name, taught):
    asked = Asked(taught=taught)
    if not taught and name == "second derivatives":
        asked.targets["hessian"] = random(N, O, D, D)
    elif not taught and name == "values alone":
        del asked.targets["jacobian"]
    asked.settings |= (ORDINARY | TAUGHT)[name]
    torch.manual_seed(1)
    first = asked.results()
    torch.manual_seed(1)
    with the_short_way_alone():
        second = asked.results()
    assert not any(isinstance(result, type) for result in second) and all(map(same, first, second))


def test_an_offset_is_a_number_of_a_call():
    asked, losses = Asked(), {}
    seeded = sk.Directions.sphere(P, seed=3)
    for place in (0, 1, 2**32 - 1):
        asked.settings["directions"] = seeded.at(place)
        with nullcontext() if place == 0 else the_short_way_alone():
            losses[place] = asked.results()
    for place, results in losses.items():
        forget()
        asked.settings["directions"] = seeded.at(place)
        assert all(map(same, asked.results(), results))
        # of the targets, and of a module, which hold them
        asked.targets["directions"] = asked.settings.pop("directions")
        assert all(map(same, asked.results(), results)) and all(map(same, asked.results(), results))
        targets = sk.Targets(values=asked.targets["values"], jacobian=asked.targets["jacobian"])
        module = sk.SobolevLoss(directions=asked.targets.pop("directions"))
        assert [module(asked.student, asked.x, targets).item() for _ in range(2)] == [results[0].item()] * 2
    assert len({results[0].item() for results in losses.values()}) == 3
    dy = [sk.jvp(asked.student, asked.x, seeded.at(place))[1] for place in (1, 1, 2, 0)]
    assert torch.equal(dy[0], dy[1]) and not torch.equal(dy[0], dy[2])
    assert torch.equal(dy[3], sk.jvp(asked.student, asked.x, seeded)[1])


# What is computed from the tensors first; then what can change beside what is looked at, and is noticed all the same.
ACCEPTED = {
    "units": ({"input_scale": torch.tensor([1.0, 2.0, 3.0])}, {"input_scale": torch.tensor([1.0, 5.0, 3.0])}),
    "no units": ({"input_scale": torch.tensor([1.0, 2.0, 3.0])}, {"input_scale": torch.tensor([1.0, 0.0, 3.0])}),
    "units of their own": ({"weights": "differential-ml"}, {}),
    "a mask": ({"derivative_weight": random(N, D) > 0}, {"derivative_weight": random(N, D, seed=1) > 0}),
    "columns": ({"wrt": [1, 0, 2]}, {"wrt": [1, 2, 0]}),
    "a weight of zero": ({"weights": (1.0, 0.0)}, {"directions": sk.Directions.sphere(1, seed=2)}),
    "no weights": ({"sample_weight": torch.ones(N), "wrt": [1, 0, 2]}, {"sample_weight": -torch.ones(N)}),
    "check_finite": ({"check_finite": True}, {"check_finite": True, "sample_weight": torch.tensor([torch.nan] * N)}),
    "another place": ({"wrt": [1, 0, 2]}, {"directions": FIXED.at(3)}),
    "fresh": ({"wrt": [1, 0, 2], "directions": sk.Directions.sphere(1)}, {}),
}


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.filterwarnings("ignore::sobolev_kernels.SobolevWarning")
def test_what_is_accepted_is_not_checked_again(name, taught):
    settings, others = ACCEPTED[name]
    if taught and settings.get("weights") == "differential-ml":
        return
    asked = Asked(taught=taught)

    def results():
        torch.manual_seed(1)
        return asked.results()

    asked.settings |= settings
    first = results()
    assert not isinstance(first[0], type)
    with the_short_way_alone():
        assert all(map(same, first, results()))
        asked.student, asked.x = copy.deepcopy(asked.student), asked.x.clone()
        assert all(map(same, first, results()))
    asked.settings |= others
    got = results()
    forget()
    assert all(map(same, got, results()))


OTHER_TEACHERS = {
    "a function": lambda x: x[:, :O].sin(),
    "of other outputs": lambda x: x[:, :1].sin(),
    "that gives no tensor": lambda x: None,
    "that gives float64": lambda x: x[:, :O].double(),
    "a module": nn.Sequential(nn.Linear(D, 5), nn.Hardtanh(), nn.Linear(5, O)),
    "of other inputs": nn.Sequential(nn.Linear(D + 1, 5), nn.Hardtanh(), nn.Linear(5, O)),
    "of another dtype": nn.Sequential(nn.Linear(D, 5), nn.Hardtanh(), nn.Linear(5, O)).double(),
    "with a batch norm": nn.Sequential(nn.Linear(D, 5), nn.BatchNorm1d(5), nn.Linear(5, O)),
    "that no gradient passes": lambda x: x.detach()[:, :O].sin(),
    "in layers of the table": nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, O)),
}


@pytest.mark.parametrize("name", OTHER_TEACHERS)
def test_a_teacher_that_is_not_looked_into_is_run_at_every_call(name):
    asked, runs = Asked(), []
    asked.targets = {"teacher": lambda x: runs.append(x) or x[:, :O].cos()}
    first = asked.results()
    runs.clear()
    with the_short_way_alone():
        assert all(map(same, first, asked.results())) and runs
        runs.clear()
        assert all(map(same, first, asked.results())) and runs
    asked.targets["teacher"] = OTHER_TEACHERS[name]
    got = asked.results()
    forget()
    assert all(map(same, got, asked.results()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_teacher_in_half_precision(dtype):
    """Nothing of such a call lies where it is computed from; it is accepted again all the same."""
    asked = Asked(taught=True)
    both_in(asked, dtype)
    first = asked.call()
    assert first.isfinite() and torch.equal(first, asked.call())
    asked.settings["backend"] = "reference"
    assert_within_rule("loss", first, asked.call().double())


def test_a_teacher_that_draws_is_warned_of_again():
    asked = Asked()
    asked.targets = {"teacher": nn.Sequential(nn.Linear(D, O), nn.Dropout()).eval()}
    asked.call(), asked.call()
    asked.teacher.train()
    with the_short_way_alone(), pytest.warns(sk.SobolevWarning, match="Dropout"):
        asked.call()


def test_numbers_are_looked_at_again():
    asked = Asked()
    asked.settings["check_finite"] = True
    asked.results()
    for tensor, name in ((asked.x, "inputs"), (asked.student[0].weight.data, "student.0.weight")):
        kept = tensor[0, 0].clone()
        tensor[0, 0] = torch.nan
        with the_short_way_alone():
            assert asked.results()[1].startswith(f"{name}: expected finite numbers")
        tensor[0, 0] = kept
    with the_short_way_alone():
        assert not isinstance(asked.results()[0], type)


def test_one_call_at_an_odd_address_is_no_reason_to_go_the_long_way():
    asked = Asked()
    asked.results()
    odd, even = misaligned(asked.x), asked.x
    for asked.x in (odd, odd):
        asked.results()
    asked.x = even
    with patch.object(call, "run", side_effect=AssertionError("tensors are computed first")):
        asked.results()


def test_half_precision_is_accepted():
    asked = Asked()
    every(asked, torch.bfloat16)
    first = asked.results()
    with the_short_way_alone():
        assert all(map(same, first, asked.results()))


def test_what_a_teacher_says_beside_values():
    """The values that are given are those that count."""
    asked = Asked(taught=True)
    asked.targets["values"] = random(N, O, seed=21)
    before = asked.results()
    with the_short_way_alone():
        assert all(map(same, before, asked.results()))


def test_another_student_like_it_goes_the_short_way():
    asked, other = Asked(), Asked()
    asked.results()
    other.student, other.x = copy.deepcopy(other.student), random(N, D, seed=50)
    with the_short_way_alone():
        got = other.results()
    forget()
    assert all(map(same, got, other.results()))


V, U = random(P, N, D, seed=60), random(P, N, O, seed=61)
DERIVATIVES = {
    "jvp": lambda s, x: sk.jvp(s, x, V),
    "vjp": lambda s, x: sk.vjp(s, x, U),
    "jacobian": lambda s, x: sk.vjp(s, x, sk.Cotangents.basis()),
    "jet": lambda s, x: sk.jet(s, x, sk.Directions.given(V[:, 0])),
    "laplacian": lambda s, x: sk.laplacian(s, x),
    "estimated": lambda s, x: sk.laplacian(s, x, sk.Directions.rademacher(2, seed=1)),
    "hvp": lambda s, x: sk.hvp(s, x, V, V.flip(0)),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives(name):
    s, x = student(), random(N, D, seed=62).requires_grad_()

    def results():
        outputs = DERIVATIVES[name](s, x)
        loss = sum(output.square().sum() for output in outputs)
        return [*outputs, *torch.autograd.grad(loss, (x, *s.parameters()))]

    before = results()
    with the_short_way_alone():
        assert all(map(same, before, results()))


@pytest.mark.parametrize("taught", [False, True])
def test_no_student_and_no_tensor_is_held(taught):
    asked = Asked(taught=taught)
    asked.settings = {"directions": sk.Directions.given(random(P, N, D, seed=5))}
    asked.results(), asked.results()
    held = [asked.student, asked.x, *asked.targets.values(), *asked.student.parameters()]
    held += asked.teacher.parameters() if taught else ()
    held.append(asked.settings["directions"].values)
    held = [weakref.ref(one) for one in held]
    assert kept.KEPT
    del asked
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)


def test_no_more_is_kept_than_is_said():
    s = student()
    for n in range(1, kept.KEPT.most + 50):
        sk.sobolev_loss(s, torch.ones(n, D), sk.Targets(values=torch.ones(n, O)), weights=(1.0, 0.0))
    assert len(kept.KEPT) == kept.KEPT.most


def test_weights_that_are_others_each_time_leave_no_steps():
    asked = Asked()
    forget()
    for i in range(5):
        loss = sk.sobolev_loss(asked.student, asked.x, sk.Targets(**asked.targets), directions=FIXED, return_terms=True)
        (loss.value + (2 + i) * loss.derivative).backward()
    assert not steps.STEPS
    for _ in range(3):
        y, dy = sk.jvp(asked.student, asked.x, V)
        (y.sum() + dy.sum()).backward()
    assert len(steps.STEPS) == 1


@pytest.mark.parametrize("taught", [False, True])
def test_two_threads(taught):
    asked = Asked(taught=taught)
    expected, found = asked.results(), []

    def work():
        for _ in range(50):
            found.append(all(map(same, expected, asked.results())))

    threads = [threading.Thread(target=work) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == [True] * 100


def test_copies():
    asked, loss = Asked(), sk.SobolevLoss(directions=FIXED)
    value = loss(asked.student, asked.x, sk.Targets(**asked.targets))
    loss(asked.student, asked.x, sk.Targets(**asked.targets))
    for again in (copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))):
        assert torch.equal(value, again(loss)(again(asked.student), asked.x, sk.Targets(**asked.targets)))


@pytest.mark.filterwarnings("ignore::sobolev_kernels.SobolevWarning")
def test_the_generator_says_what_is_drawn():
    asked, losses = Asked(), []
    asked.settings = {"directions": sk.Directions.sphere(1)}
    for _ in range(2):
        torch.manual_seed(5)
        losses.append([asked.call().item() for _ in range(3)])
    forget()
    torch.manual_seed(5)
    losses.append([asked.call().item()])
    assert losses[0] == losses[1] and losses[0][0] == losses[2][0] and len(set(losses[0])) == 3


@pytest.mark.filterwarnings("ignore::sobolev_kernels.SobolevWarning")
def test_a_thread_that_begins_in_inference_mode_draws_outside_of_it_too():
    asked, losses = Asked(), []
    asked.settings = {"directions": sk.Directions.sphere(1)}
    asked.call()

    def work():
        for around in (torch.inference_mode, nullcontext):
            for _ in range(2):
                with around():
                    losses.append(asked.call().item())

    thread = threading.Thread(target=work)
    thread.start(), thread.join()
    assert len(losses) == 4


def test_a_gradient_is_given_away_once():
    asked = Asked()
    expected = asked.results()[1:]
    loss = asked.call()
    loss.backward(retain_graph=True)
    for parameter in asked.student.parameters():
        parameter.grad.mul_(100)
        parameter.grad = None
    loss.backward(retain_graph=True)
    for parameter, gradient in zip(asked.student.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)
        parameter.grad = None
    (3 * loss).backward()
    for parameter, gradient in zip(asked.student.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, 3 * gradient)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradients_are_added_up():
    asked = Asked()
    expected = asked.results()[1:]
    for _ in range(3):
        asked.call().backward()
    for parameter, gradient in zip(asked.student.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, 3 * gradient)
    first, second = asked.call(), asked.call()
    gradients = torch.autograd.grad(first + 2 * second, list(asked.student.parameters()))
    for got, gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, 3 * gradient)


def test_gradients_are_not_copied():
    """What the kernel wrote, after the loss, is the parameter's gradient."""
    asked = Asked()
    asked.call()
    made = []
    with patch.object(
        kept.ops, "empty_like", side_effect=lambda t: made.append(torch.zeros_like(t)) or made[-1].detach()
    ):
        asked.call().backward()
    assert [p.grad.data_ptr() for p in asked.student.parameters()] == [t.data_ptr() for t in made[1:]]


def test_a_bias_that_is_a_buffer_is_not_none():
    x, v = random(N, D), random(1, N, D, seed=1)
    make = lambda: nn.Sequential(nn.Linear(D, 5, bias=False), nn.Tanh(), nn.Linear(5, O, bias=False))  # noqa: E731
    sk.jvp(make(), x, v)
    other = make()
    del other[0].bias
    other[0].register_buffer("bias", torch.ones(5))
    torch.testing.assert_close(sk.jvp(other, x, v)[0], other(x))


def test_settings_that_are_equal_and_not_the_same():
    asked = Asked()
    with pytest.raises(ValueError, match="wrt"):
        sk.sobolev_loss(asked.student, asked.x, sk.Targets(**asked.targets), wrt=(0.0, 1.0))
    asked.targets["jacobian"] = random(N, O, 2)
    asked.settings["wrt"] = (0, 1)
    asked.call()
    weights = torch.tensor([1.0, 1.0])
    asked.settings["weights"] = weights
    first = asked.call()
    weights[1] = 0.0
    assert asked.call() < first
    held = weakref.ref(weights)
    del weights, asked.settings["weights"]
    gc.collect()
    assert held() is None


def test_what_a_loss_holds_after_its_backward():
    """x and the targets go, also while somebody keeps the loss."""
    asked = Asked()
    for _ in range(2):
        loss, x = asked.call(), asked.x
        asked.x, held = random(N, D, seed=20), weakref.ref(x)
        loss.backward()
        del x
        assert held() is None and loss.grad_fn is not None


def test_a_student_that_changes_while_he_is_looked_at():
    asked, prepare = Asked(), call.prepare

    def prepare_another(*request):
        asked.student[1].beta = 3.0
        return prepare(*request)

    with patch.object(call, "prepare", prepare_another):
        asked.call()
    asked.student[1].beta = 1.0
    got = asked.results()
    forget()
    assert all(map(same, got, asked.results()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_do_not_depend_on_the_call_before(dtype):
    """A tile's room is that of earlier calls, and vectors with samples that there are not still hold theirs."""
    net = sk.MLP(D, O, width=8, depth=2, activation="sin", dtype=dtype)
    x, large = random(33, D, dtype=dtype).requires_grad_(), 1e30 * random(48, D, dtype=dtype)

    def results():
        targets = sk.Targets(values=torch.zeros(33, O, dtype=dtype), jacobian=torch.zeros(33, O, D, dtype=dtype))
        loss = sk.sobolev_loss(net, x, targets, directions=FIXED)
        return [loss, *torch.autograd.grad(loss, (x, *net.parameters()))]

    before = results()
    for n in (16, 32, 48):
        targets = sk.Targets(values=torch.zeros(n, O, dtype=dtype), jacobian=torch.zeros(n, O, D, dtype=dtype))
        sk.sobolev_loss(net, large[:n], targets, directions=sk.Directions.given(1e30 * random(P, n, D, dtype=dtype)))
        assert all(map(same, before, results()))


@pytest.mark.parametrize("sequence", [list, range, np.arange], ids=str)
def test_columns_are_known_however_they_are_named(sequence):
    """Settings that are made anew at each call cost five times what a small call does."""
    columns = sequence(2) if sequence is not list else [0, 1]
    known = settings_with(wrt=(0, 1), derivatives="exact")
    assert settings_with(wrt=columns, derivatives="exact") is known and known.wrt == (0, 1)
