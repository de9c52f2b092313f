"""Inputs with labels, as tensors: two data sets that need no download, and any that is named.

digits                     8 x 8 pixels of written digits, 1,797 of them (scikit-learn)
mnist1d                    one-dimensional digits, 5,000 of them, made anew by the package
torchvision:NAME           a data set of torchvision.datasets with `train=`, downloaded where it is missing
MODULE:FUNCTION            any other: a function without arguments that gives a pair of torch data sets, for
                           training and for the test, or one, of which a quarter is kept for the test; an entry is
                           an input, numbers of any one shape, and a label, an integer from 0 on
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

TEST_PART = 0.25
EXTRA = 'pip install "sobolev_kernels[examples]"'


class DataError(ValueError):
    """What is wrong with a data set, in words."""


@dataclass(frozen=True)
class Data:
    """Inputs [N, D] and labels [N] in [0, classes)."""

    x: torch.Tensor
    label: torch.Tensor
    classes: int

    def __getitem__(self, samples: torch.Tensor | slice) -> Data:
        return Data(self.x[samples], self.label[samples], self.classes)

    def __len__(self) -> int:
        return len(self.x)


def digits() -> Data:
    x, label = module_of("sklearn.datasets", "digits", "scikit-learn").load_digits(return_X_y=True)
    return data_from(x, label, "digits")


def mnist1d() -> Data:
    """Generated, not downloaded: the package's own program with its own seed."""
    made = module_of("mnist1d.data", "mnist1d", "mnist1d")
    state = np.random.get_state()
    parts = made.make_dataset(made.get_dataset_args())
    np.random.set_state(state)
    x = np.concatenate([parts["x"], parts["x_test"]])
    return data_from(x, np.concatenate([parts["y"], parts["y_test"]]), "mnist1d")


HERE: dict[str, Callable[[], Data]] = {"digits": digits, "mnist1d": mnist1d}


@lru_cache
def load(name: str) -> tuple[Data, Data]:
    """For training and for the test, in units in which the training set has mean 0 and deviation 1.

    Raises:
        DataError: there is no such data set, or it is not what is expected.
    """
    if name in HERE:
        train, test = parted(HERE[name]())
    else:
        train, test = named(name)
    if train.x.shape[1] != test.x.shape[1]:
        raise DataError(f"{name}: inputs of {train.x.shape[1]} numbers for training, of {test.x.shape[1]} in the test")
    classes = max(train.classes, test.classes)
    mean, deviation = train.x.mean(), train.x.std()
    if not deviation > 0:
        raise DataError(f"{name}: expected inputs that differ, got one number everywhere")
    units = [Data(((part.x - mean) / deviation).float(), part.label, classes) for part in (train, test)]
    return units[0], units[1]


def parted(data: Data) -> tuple[Data, Data]:
    """Shuffled once and for all: the test is the same in every run."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    kept = round(len(data) * TEST_PART)
    return data[order[kept:]], data[order[:kept]]


def named(name: str) -> tuple[Data, Data]:
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        known = ", ".join(HERE)
        raise DataError(f"expected one of {known}, torchvision:NAME or MODULE:FUNCTION, got {name!r}")
    found = of_torchvision(function) if module == "torchvision" else made_by(module, function)
    if isinstance(found, (tuple, list)):
        if len(found) != 2:
            raise DataError(f"{name}: expected one data set or a pair, for training and test, got {len(found)}")
        train, test = (data_of(part, name) for part in found)
        return train, test
    return parted(data_of(found, name))


def made_by(module: str, function: str) -> object:
    if "" not in sys.path:
        sys.path.insert(0, "")
    make = getattr(module_of(module, f"{module}:{function}", module), function, None)
    if not callable(make):
        raise DataError(f"{module}:{function}: expected a function of this name in the module, got {make!r}")
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise DataError(f"{module}:{function}: expected a function without arguments ({error})") from error
    except ValueError:
        pass  # of a builtin, which does not tell
    return make()


def of_torchvision(name: str) -> tuple[object, object]:
    make = getattr(module_of("torchvision.datasets", f"torchvision:{name}", "torchvision"), name, None)
    if make is None or "train" not in inspect.signature(make).parameters:
        raise DataError(
            f"torchvision:{name}: expected a class of torchvision.datasets with the argument `train`, as MNIST or "
            f"CIFAR10; for others write a function, MODULE:FUNCTION"
        )
    options = {"download": True} if "download" in inspect.signature(make).parameters else {}
    root = str(Path.home() / ".cache" / "torchvision")
    return make(root, train=True, **options), make(root, train=False, **options)


def module_of(name: str, dataset: str, package: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        hint = f"; {EXTRA}" if dataset in HERE else ""
        raise DataError(f"{dataset} needs {package}, which cannot be imported ({error}){hint}") from error


def data_of(entries: object, name: str) -> Data:
    """All entries of a torch data set at once."""
    try:
        N = len(entries)
        pairs = [entries[i] for i in range(N)]
    except (TypeError, KeyError, IndexError) as error:
        raise DataError(f"{name}: expected a data set with a length and entries by number, got {entries!r}") from error
    if not pairs or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise DataError(f"{name}: expected entries of an input and a label, got others, as {pairs[:1]!r:.100}")
    try:
        inputs, labels = ([array_of(part) for part in column] for column in zip(*pairs, strict=True))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}: expected inputs and labels that NumPy can read ({error})") from error
    shapes = {x.shape for x in inputs}
    if len(shapes) > 1:
        raise DataError(f"{name}: expected inputs of one shape, got {', '.join(map(str, sorted(shapes)[:4]))}")
    return data_from(inputs, labels, name)


def array_of(part: object) -> np.ndarray:
    """Of a tensor too that has a gradient, or a dtype that NumPy lacks."""
    if isinstance(part, torch.Tensor):
        part = part.detach().cpu()
        part = part.float() if part.is_floating_point() else part
    return np.asarray(part)


def data_from(x: object, label: object, name: str) -> Data:
    """Inputs of any shape as rows, and labels as integers that begin at 0."""
    try:
        x, label = np.asarray(x, dtype=np.float32), np.asarray(label)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: expected inputs that are numbers ({error})") from error
    if len(x) < 20 or x.size == 0:
        raise DataError(f"{name}: expected at least 20 samples of at least one number, got an array {x.shape}")
    if not np.isfinite(x).all():
        raise DataError(f"{name}: expected finite inputs, got NaN or infinity")
    whole = label.astype(np.int64) if label.dtype.kind in "iufb" else None
    if whole is None or label.size != len(x) or (whole != label).any() or whole.min() < 0:
        raise DataError(f"{name}: expected one label for each sample, an integer from 0 on, got {label.ravel()[:4]} …")
    if whole.max() < 1 or whole.max() >= len(x):
        raise DataError(f"{name}: expected classes 0, 1, …, got labels from {whole.min()} to {whole.max()}")
    return Data(torch.tensor(x).flatten(1), torch.tensor(whole.ravel()), int(whole.max()) + 1)
