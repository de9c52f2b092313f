"""Modules that are trained apart: their gradients, the search that leaves the edge, data sets by name, a tiny run."""

import csv
import subprocess
import sys
from os import environ
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from examples.synthetic_gradients import labelled
from examples.synthetic_gradients.decoupled import (
    LOSSES,
    METHODS,
    WIDTH,
    backward_apart,
    fitting_loss,
    network,
    predictors_of,
)
from examples.synthetic_gradients.labelled import DataError
from examples.synthetic_gradients.report import by_hand, by_reference
from examples.synthetic_gradients.tuning import LADDER, search
from sobolev_kernels.testing.rule import CLOSE_IN_SINGLE

ROOT = str(Path(__file__).parent.parent)

CLASSES, N = 3, 20


def samples(N: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(N, 5), torch.randint(CLASSES, (N,))


class Oracle(torch.nn.Module):
    """A predictor that says what it was told."""

    def __init__(self, said: torch.Tensor):
        super().__init__()
        self.said = torch.nn.Parameter(said)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        return self.said


def test_true_gradients_train_modules_as_back_propagation_does():
    """And what a predictor is fitted to is the gradient of each sample's own loss."""
    x, label = samples()
    modules = network(5, CLASSES)
    first = modules[0](x)
    second = modules[1](first)
    loss = F.cross_entropy(modules[2](second), label, reduction="none")
    truth = torch.autograd.grad(loss.sum(), (first, second), retain_graph=True)
    expected = torch.autograd.grad(loss.mean(), modules.parameters())
    predictors = torch.nn.ModuleList(Oracle(g.clone()) for g in truth)
    backward_apart("direct", modules, predictors, x, label, F.one_hot(label, CLASSES).float())
    for parameter, gradient in zip(modules.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, **CLOSE_IN_SINGLE)
    for predictor in predictors:
        torch.testing.assert_close(predictor.said.grad, torch.zeros(N, WIDTH), **CLOSE_IN_SINGLE)


@pytest.mark.parametrize("method", METHODS)
def test_what_each_method_trains(method):
    x, label = samples()
    modules, predictors = network(5, CLASSES), predictors_of(method, CLASSES)
    if method == "backprop":
        assert not len(predictors)
        return
    for predictor in predictors:
        torch.nn.init.normal_(predictor[-1].weight)
    backward_apart(method, modules, predictors, x, label, F.one_hot(label, CLASSES).float())
    trained = [all(p.grad is not None and p.grad.any() for p in module.parameters()) for module in modules]
    assert trained == [method != "no-prop"] * 2 + [True]
    assert all(p.grad is not None and p.grad.any() for p in predictors.parameters())


@pytest.mark.parametrize("method", LOSSES)
def test_fused_critic_is_the_one_written_by_hand(method):
    torch.manual_seed(1)
    critic = predictors_of(method, CLASSES)[0]
    torch.nn.init.normal_(critic[-1].weight)
    told = torch.randn(N, WIDTH + CLASSES), torch.rand(N, 1), torch.randn(N, WIDTH)
    losses = [loss(method, critic, *told) for loss in (fitting_loss, by_hand, by_reference)]
    gradients = [torch.autograd.grad(loss, critic.parameters(), allow_unused=True) for loss in losses]
    for loss, found in zip(losses[1:], gradients[1:], strict=True):
        torch.testing.assert_close(losses[0], loss, **CLOSE_IN_SINGLE)
        for g, other in zip(gradients[0], found, strict=True):
            torch.testing.assert_close(g, torch.zeros_like(g) if other is None else other, **CLOSE_IN_SINGLE)


def test_search_leaves_the_edge_or_says_that_it_did_not():
    def evaluate(places):
        return [sum((i - best) ** 2 for i, best in zip(place, (1, -8), strict=False)) for _, place in places]

    starts = {"far": (-6, -4), "near": (1,)}
    found = search(starts, evaluate, rounds=9)
    assert found["far"].place == (1, -8) and found["far"].inside and found["far"].rounds == 7
    assert found["near"].place == (1,) and found["near"].inside and found["near"].rounds == 0
    assert found["far"].rates == (LADDER[1], LADDER[-8])
    few = search(starts, evaluate, rounds=1)["far"]
    assert not few.inside and few.rounds == 1
    # The ladder has an end, beyond which nothing was tried.
    last = search({"last": (max(LADDER),)}, lambda places: [-place[0] for _, place in places], rounds=9)["last"]
    assert last.place == (max(LADDER),) and not last.inside


class Entries(torch.utils.data.Dataset):
    def __init__(self, *entries):
        self.entries = entries

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, i):
        return self.entries[i]


def entries(N: int, shape=(2, 3), classes: int = CLASSES) -> Entries:
    torch.manual_seed(2)
    return Entries(*((torch.randn(shape), i % classes) for i in range(N)))


def module_with(monkeypatch, name: str, **functions) -> None:
    module = ModuleType(name)
    module.__dict__.update(functions)
    monkeypatch.setitem(sys.modules, name, module)


def test_any_torch_data_set_is_read(monkeypatch):
    module_with(monkeypatch, "mine", one=lambda: entries(80), two=lambda: (entries(40), entries(24)))
    for name, counts in (("mine:one", (60, 20)), ("mine:two", (40, 24))):
        train, test = labelled.load.__wrapped__(name)
        assert (len(train), len(test)) == counts and train.classes == test.classes == CLASSES
        assert train.x.shape == (counts[0], 6) and train.x.dtype == torch.float32 and train.label.dtype == torch.int64
        torch.testing.assert_close(train.x.std(), torch.tensor(1.0))
        assert abs(train.x.mean()) < 1e-6
    made = {"requires_grad": True, "dtype": torch.bfloat16}
    module_with(monkeypatch, "mine", odd=lambda: Entries(*((torch.randn(2, **made), i % 2) for i in range(40))))
    assert labelled.load.__wrapped__("mine:odd")[0].x.shape == (30, 2)
    module_with(monkeypatch, "mine", one=lambda: entries(80))
    again = labelled.load.__wrapped__("mine:one")
    assert all(torch.equal(a.x, b.x) for a, b in zip(again, labelled.load.__wrapped__("mine:one"), strict=True))


def test_torchvision_by_name(monkeypatch):
    asked = []

    def Digits(root, train=True, transform=None, download=False):
        asked.append((train, download))
        return entries(40 if train else 24)

    module_with(monkeypatch, "torchvision")
    module_with(monkeypatch, "torchvision.datasets", Digits=Digits, Parted=lambda root, split="train": None)
    train, test = labelled.load.__wrapped__("torchvision:Digits")
    assert (len(train), len(test)) == (40, 24) and asked == [(True, True), (False, True)]
    for name in ("Parted", "Missing"):
        with pytest.raises(DataError, match=r"the argument `train`.*MODULE:FUNCTION"):
            labelled.load.__wrapped__(f"torchvision:{name}")


REFUSED = {
    "three": (lambda: (entries(20),) * 3, "a pair, for training and test, got 3"),
    "number": (lambda: 3, "a data set with a length"),
    "no_label": (lambda: Entries(*[torch.ones(3)] * 40), "an input and a label"),
    "shapes": (lambda: Entries(*((torch.ones(3 + i % 2), 0) for i in range(40))), r"one shape, got \(3,\), \(4,\)"),
    "few": (lambda: entries(19), "at least 20 samples"),
    "empty": (lambda: entries(0), "entries of an input and a label"),
    "nan": (lambda: Entries(*((torch.full((2,), torch.nan), i % 2) for i in range(40))), "finite inputs"),
    "halves": (lambda: Entries(*((torch.randn(2), 0.5) for i in range(40))), "an integer from 0 on"),
    "names": (lambda: Entries(*((torch.randn(2), "cat") for i in range(40))), "an integer from 0 on"),
    "negative": (lambda: Entries(*((torch.randn(2), -1) for i in range(40))), "an integer from 0 on"),
    "one_class": (lambda: entries(40, classes=1), "classes 0, 1"),
    "codes": (lambda: Entries(*((torch.randn(2), 10**6 * (i % 2)) for i in range(40))), "from 0 to 1000000"),
    "constant": (lambda: Entries(*((torch.ones(2), i % 2) for i in range(40))), "inputs that differ"),
    "words": (lambda: Entries(*(("a word", i % 2) for i in range(40))), "inputs that are numbers"),
    "unlike": (lambda: (entries(40), entries(40, (7,))), "of 6 numbers for training, of 7 in the test"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_data_set_is_refused_in_words(name, monkeypatch):
    make, message = REFUSED[name]
    module_with(monkeypatch, "mine", **{name: make})
    with pytest.raises(DataError, match=f"mine:{name}: .*{message}"):
        labelled.load.__wrapped__(f"mine:{name}")


def test_names_that_are_none_are_refused_in_words(monkeypatch):
    module_with(monkeypatch, "mine", thing=3, two=lambda a, b: None)
    for name, message in (
        ("cifar", "digits, mnist1d, torchvision:NAME or MODULE:FUNCTION"), (":f", "got ':f'"), ("mine:", "got 'mine:'"),
        ("mine:thing", "a function of this name in the module, got 3"), ("mine:other", "got None"),
        ("mine:two", "without arguments .*'a'"),
        ("no_such_module:f", "cannot be imported"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            labelled.load.__wrapped__(name)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"digits needs scikit-learn.*sobolev_kernels\[examples\]"):
        labelled.load.__wrapped__("digits")


MINE = """
import torch

def clouds():
    torch.manual_seed(0)
    label = torch.arange(200) % 3
    return torch.utils.data.TensorDataset(torch.randn(200, 4) + 3 * torch.nn.functional.one_hot(label, 4), label)
"""


@pytest.mark.long
def test_tiny_run_gives_tables_picture_and_verdict(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    options = ["--effort", "tiny", "--workers", "1", "--dataset", "mine:clouds", "--out", "found"]
    command = [sys.executable, "-W", "error", "-m", "examples.synthetic_gradients", *options]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environ | {"PYTHONPATH": ROOT}
    )
    assert run.returncode == 0, run.stderr
    assert "mine:clouds, equal steps:" in run.stdout and "Of the paper's order came out:" in run.stdout
    assert (tmp_path / "found" / "synthetic_gradients.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "found" / "synthetic_gradients.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["budget"]) for row in rows] == [(m, b) for b in ("steps", "time") for m in METHODS]
    # At equal steps of all modules and predictors; in equal time at least as many.
    steps = {(row["method"], row["budget"]): float(row["steps"]) for row in rows}
    assert len({steps[method, "steps"] for method in METHODS}) == 1
    assert all(steps[method, "time"] >= steps[method, "steps"] for method in METHODS)
    with (tmp_path / "found" / "synthetic_gradients_rates.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file) if row["best"] == "True"] == list(METHODS)
