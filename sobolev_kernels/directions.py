"""`Directions` and `Cotangents`: the vectors that derivatives are projected on, in input and in output space."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import index
from typing import TYPE_CHECKING

import torch
from torch import distributed

from .boundary import faults_of_memory
from .changed import replace
from .drawing import IN_VMAP, Drawing, drawn, drawn_for_samples, over_samples
from .errors import (
    Fault,
    NotProvided,
    as_tensor,
    closest,
    converted,
    describe,
    in_words,
    nearest,
    need,
    need_tensor,
    one_of,
    refuse,
    whole,
)
from .math.directions import CENTRED, DISTRIBUTIONS, GIVEN, MASK32, place_of, told, unbiased_magnitude

if TYPE_CHECKING:
    from typing_extensions import Self

NAMES = (*DISTRIBUTIONS, GIVEN)

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Projections:
    """What `Directions` and `Cotangents` have in common: vectors of n numbers, drawn from a distribution or given.

    Two are equal if they say the same; those with a tensor in them are equal to themselves alone.
    """

    distribution: str
    P: int | None
    shared: bool = False
    seed: int | None = None
    offset: int = 0
    unbiased: bool = False
    values: torch.Tensor | None = field(default=None, repr=False)
    first: int | None = None
    entries: bool = field(default=False, repr=False)  # whether each residual is that of an entry of a Jacobian

    def __post_init__(self):
        for name in ("P", "seed", "offset", "first"):
            if type(value := getattr(self, name)) not in (int, type(None)):
                object.__setattr__(self, name, whole(value))
        refuse(self._faults())
        # what calls are found by, made once: each asks for it. The offset is a number of a call, as tensors are
        object.__setattr__(self, "entries", self.entries or self.distribution == "basis")
        said = self.distribution, self.P, self.shared, self.seed, self.unbiased, self.entries, self.first
        object.__setattr__(self, "said", said)

    def _faults(self) -> Iterator[Fault]:
        distribution, P, seed, offset, values = self.distribution, self.P, self.seed, self.offset, self.values
        if not one_of(distribution, self.ALSO + NAMES):
            yield Fault("distribution", f"one of {', '.join(NAMES)}", distribution, hint=nearest(distribution, NAMES))
        if not (type(P) is int and P >= 1) and distribution not in ("basis", GIVEN):
            yield Fault("P", f"a whole number of {self.NAME}, at least 1", P)
        if seed is not None and not (type(seed) is int and 0 <= seed < 2**63):
            yield Fault("seed", "None or an integer in [0, 2^63)", seed)
        if not (type(offset) is int and 0 <= offset < 2**32):
            yield Fault("offset", "an integer in [0, 2^32)", offset)
        if self.first is not None and not (type(self.first) is int and 0 <= self.first < 2**31):
            yield Fault("first", "None or an integer in [0, 2^31)", self.first)
        if not (type(self.shared) is bool and type(self.unbiased) is bool):
            yield Fault("shared and unbiased", "True or False", (self.shared, self.unbiased))
        if values is not None and (distribution != GIVEN or len(values) != P or self.shared != (values.dim() == 2)):
            yield Fault("values", f"those of {type(self).__name__}.given(tensor)", values)

    @classmethod
    @in_words
    def sphere(cls, P: int = 1, *, shared: bool = False, seed: int | None = None, unbiased: bool = False) -> Self:
        """P independent ones, uniform on the unit sphere (the paper's)."""
        return cls("sphere", P, shared, seed, unbiased=unbiased)

    @classmethod
    @in_words
    def normal(cls, P: int = 1, *, shared: bool = False, seed: int | None = None, unbiased: bool = False) -> Self:
        """P independent ones, standard normal."""
        return cls("normal", P, shared, seed, unbiased=unbiased)

    @classmethod
    @in_words
    def rademacher(cls, P: int = 1, *, shared: bool = False, seed: int | None = None, unbiased: bool = False) -> Self:
        """P independent ones of random signs ±1."""
        return cls("rademacher", P, shared, seed, unbiased=unbiased)

    @classmethod
    @in_words
    def coordinate(cls, P: int = 1, *, shared: bool = False, seed: int | None = None, unbiased: bool = False) -> Self:
        """P independent random unit vectors e_d."""
        return cls("coordinate", P, shared, seed, unbiased=unbiased)

    @classmethod
    @in_words
    def orthonormal(cls, P: int = 1, *, shared: bool = False, seed: int | None = None, unbiased: bool = False) -> Self:
        """P <= n mutually orthogonal unit vectors, a uniformly random frame."""
        return cls("orthonormal", P, shared, seed, unbiased=unbiased)

    @classmethod
    @in_words
    def basis(cls, *, unbiased: bool = False) -> Self:
        """All the unit vectors: the exact loss, the mean over all entries of the Jacobian."""
        return cls("basis", None, seed=0, unbiased=unbiased)

    @classmethod
    @in_words
    def given(cls, values: torch.Tensor) -> Self:
        """Your own: [P, N, n] (n = D for directions, O for cotangents), or [P, n] shared by the batch; directions of
        inputs [N, …] are [P, N, …]."""
        refuse(cls._faults_of_given(values))
        return cls("given", values.shape[0], shared=values.dim() == 2, values=values)

    @classmethod
    def _faults_of_given(cls, values: object) -> Iterator[Fault]:
        name, shape = cls.NAME, f"a tensor [P, N, {cls.LETTER}] or [P, {cls.LETTER}]"
        if not isinstance(values, torch.Tensor):
            yield Fault(name, shape, values, TypeError, as_tensor(values))
        yield from faults_of_memory(name, values)
        if not 1 < values.dim() <= cls.MOST:
            yield Fault(name, shape, values)
        if not values.shape[0]:
            yield Fault(name, f"at least one {name[:-1]} (P >= 1)", values)

    @classmethod
    def of(cls, values: object, name: str):
        """These as they are, or a tensor [P, N, n] as given ones.

        Of one without a dimension for the samples it is not known whether its rows are of the samples or of the batch.
        """
        if isinstance(values, cls):
            return values
        if type(values) is torch.Tensor and values.dim() == 3:
            refuse(faults_of_memory(name, values))
            P = values.shape[0]
            if torch.compiler.is_compiling() or not (type(P) is int and P):
                return cls.given(values)
            made, like = object.__new__(cls), like_given(cls, P)
            made.__dict__.update(like.__dict__, values=values, known=like)
            return made
        count, v = ("R", "u") if cls.LETTER == "O" else ("P", "v")
        expected = f"a tensor [{count}, N, {cls.LETTER}] or a sobolev_kernels.{cls.__name__}"
        need(isinstance(values, torch.Tensor), name, expected, values, TypeError, cls.hint(values))
        refuse(faults_of_memory(name, values))
        v = name if len(name) == 1 else v
        hint = f"for one a sample give {v}[None], for the same at every sample {cls.__name__}.given({v})"
        need(values.dim() != 2, name, expected, values, hint=hint)
        hint = f"for the same at every sample {cls.__name__}.given({v}[None])" if values.dim() == 1 else ""
        need(2 < values.dim() <= cls.MOST, name, expected, values, hint=hint)
        return cls.given(values)

    @classmethod
    def hint(cls, value: object) -> str:
        """How to make one of what is not one."""
        if close := closest(value, DISTRIBUTIONS):
            return f"did you mean {cls.__name__}.{close}(...)?"
        return as_tensor(value)

    def at(self, offset: int) -> Self:
        """The same seed at another place of its stream, for example `directions.at(step)`; offset in [0, 2^32)."""
        moved = replace(self, offset=offset)
        need(self.seed is not None, "offset", f"{self.NAME} with a seed", self)
        object.__setattr__(moved, "known", self.bare())
        return moved

    def numbered_from(self, first: int) -> Self:
        """The same for a batch whose samples are numbers first, first + 1, … of a larger one: its part of the draw."""
        return replace(self, first=first)

    def first_sample(self, N: int) -> int:
        """The number of the first of N samples: of a process among others, which take as many each, its rank · N."""
        if self.first is not None:
            return self.first
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank() * N
        return 0

    def to(self, *args, **kwargs):
        """With a tensor that was given at another device or of another dtype, as `torch.Tensor.to`."""
        if self.values is None:
            return self
        values = self.values.to(*args, **kwargs)
        return self if values is self.values else replace(self, values=values)

    def said_in_short(self) -> str:
        if self.values is not None:
            return describe(self.values).removeprefix("a tensor ")
        said = ("", self.P), ("seed ", self.seed), ("at ", self.offset or None), ("from ", self.first)
        return " ".join([self.distribution, *(f"{name}{value}" for name, value in said if value is not None)])

    def without_values(self):
        """What is known of given ones beside their tensor."""
        return replace(self, values=None)

    def bare(self):
        """What is known beside a tensor and an offset, the numbers of a call; the same one each time."""
        if self.values is None and not self.offset:
            return self
        if "known" not in self.__dict__:
            object.__setattr__(self, "known", replace(self, values=None, offset=0))
        return self.__dict__["known"]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        if self is other:
            return True
        return self.values is None is other.values and self.offset == other.offset and self.said == other.said

    def __hash__(self) -> int:
        return hash((self.said, self.offset)) if self.values is None else id(self)

    @property
    def fixed(self) -> bool:
        """Whether two calls use the same ones."""
        return self.seed is not None or self.distribution == "given"

    def count(self, n: int) -> int:
        """P for vectors of n numbers."""
        return n if self.distribution == "basis" else self.P

    def faults(self, like: torch.Tensor, n: int | None, given: torch.Tensor | None) -> Iterator[Fault]:
        """Why these do not suit `like` [N, ...]: vectors of n numbers (None: not known yet), given ones its dtype."""
        if n is not None and self.distribution == "orthonormal" and self.P > n:
            yield Fault(self.NAME, f"at most {self.LETTER} = {n} orthonormal {self.NAME}", f"P = {self.P}")
        if n is not None and n < 2 and self.distribution == CENTRED:
            yield Fault(self.NAME, "at least two outputs for centred ones, whose sum over outputs is 0", f"O = {n}")
        if given is None and self.distribution == GIVEN:
            yield Fault(self.NAME, f"{type(self).__name__}.given(tensor)", self)
        if given is not None:
            N, known = like.shape[0], given.shape[-1] if n is None else n
            shape = (known,) if self.shared else (N, known)
            half = like.dtype in (torch.bfloat16, torch.float16)
            same = given.dtype == like.dtype or (half and given.dtype == torch.float32)
            if not (given.shape[1:] == shape and given.device == like.device and same):
                shape = shape if n is not None else (*shape[:-1], self.LETTER)
                expected = f"{like.dtype} [P, {', '.join(map(str, shape))}] on {like.device}, as the inputs are"
                yield Fault(self.NAME, expected, given, hint=converted(given, like, self.NAME))

    def magnitude(self, n: int) -> float:
        return unbiased_magnitude(self.distribution, n) if self.unbiased else 1.0

    def draw_seed(self, device: torch.device = CPU, N: int = 0) -> torch.Tensor | None:
        """Key and place of a call with N samples, int64 [2] on the CPU; None for given ones.

        While a graph is captured it is a tensor of the device: its generator moves on at each replay, so that each
        draws anew.
        """
        if self.distribution == "given":
            return None
        if self.seed is not None:
            seed = torch.tensor((self.seed, self.offset), dtype=torch.int64, device="cpu")
        else:
            try:
                where = device if is_capturing(device) else "cpu"
                seed = torch.randint(2**62, (2,), dtype=torch.int64, device=where)
                seed[1] &= MASK32
            except RuntimeError as error:
                if "randomness" not in str(error):
                    raise
                raise NotProvided(IN_VMAP) from error
        if not (type(first := self.first_sample(N)) is int and first == 0):
            seed[1] += first << 32
        return seed

    def draw_numbers(
        self, device: torch.device, N: int, offset: int | None
    ) -> tuple[Sequence[int], torch.Tensor | None]:  # fmt: skip
        """The same as kernels are told it, where no transform of torch.func is around; with the tensor, where only the
        device knows it. `offset`: where it is another than theirs."""
        if self.seed is not None:
            return (self.seed, place_of(self.offset if offset is None else offset, self.first_sample(N))), None
        if is_capturing(device):
            seed = self.draw_seed(device, N)
            return told(seed), seed
        key, offset = ROOM.numbers.random_(0, 2**62).tolist()
        return (key, place_of(offset, self.first_sample(N))), None

    def tensor(self, like: torch.Tensor, samples: torch.Tensor | None = None) -> torch.Tensor:
        """The vectors [P, N, n] that a call uses, on the device of `like` [N, n]: its inputs x [N, D] (of inputs
        [N, …] directions [P, N, …]), or for cotangents the student's outputs [N, O].

        They are of the dtype that the call computes in: that of `like`, or float32 for half precision.
        Without a seed this takes the next draw of torch's default generator, exactly as a call does. With `samples`,
        int64 [N], those that a seed gives samples of these numbers, whatever their place in the batch.
        """
        name, shape = "outputs" if self.LETTER == "O" else "inputs", f"[N, {self.LETTER}]"
        need_tensor(like, name, f"a tensor {shape}")
        refuse(faults_of_memory(name, like))
        floating = 1 < like.dim() < self.MOST and like.is_floating_point()
        need(floating, name, f"a floating tensor {shape}", like)
        N, *sizes = like.shape
        n = like.shape[1:].numel()
        if self.values is not None and self.values.dim() > 3:
            need(self.values.shape[1:] == like.shape, self.NAME, f"[P, {', '.join(map(str, like.shape))}]", self.values)
            return self.values
        refuse(self.faults(like, n, self.values))
        if self.values is not None:
            return over_samples(self.values, N)
        if samples is None:
            vectors = drawn(self.drawing(n, like), self.draw_seed(like.device, N), N)
        else:
            need(
                self.seed is not None and len(samples) == N, "samples", f"the numbers of {N} samples of a seed", samples
            )
            seed = torch.tensor((self.seed, self.offset), dtype=torch.int64, device="cpu")
            vectors = drawn_for_samples(self.drawing(n, like), seed, samples.to(like.device))
        return vectors if len(sizes) == 1 else vectors.unflatten(2, sizes)

    def drawing(self, n: int, like: torch.Tensor) -> Drawing:
        """How they are drawn: n numbers each, in the dtype that a step computes in, on the device of `like`."""
        dtype = str(like.dtype if like.dtype == torch.float64 else torch.float32).removeprefix("torch.")
        where = {"dtype": dtype, "device": like.device.type}
        n = index(n)
        return Drawing(self.distribution, self.count(n), n, self.shared, self.magnitude(n), **where)


class Room(threading.local):
    """Where a thread draws seeds, in less time than a tensor takes to be made."""

    def __init__(self):
        with torch.inference_mode(False):  # a tensor of that mode could not be written to outside of it
            self.numbers = torch.empty(2, dtype=torch.int64, device="cpu")


ROOM = Room()


class Directions(Projections):
    """Input directions v along which derivatives are compared, D m(x)[v]; made by the class methods.

    For directions of unit length (`sphere`, `coordinate`, `orthonormal`, `basis`) E[(g·v)²] = |g|² / D; for `normal`
    and `rademacher` it is |g|². With `unbiased=True` the former are multiplied by √D, and the mean squared residual
    estimates the full squared Jacobian norm Σ_d (∂m/∂x_d - ∂f/∂x_d)² in every case.

    Args:
        P: number of directions of one call.
        shared: one draw for all samples of the batch, instead of one for each.
        seed: an integer in [0, 2^63) fixes the directions, the same ones at every call; `at(step)` moves on. Without
            it each call takes a fresh seed from torch's default CPU generator, so `torch.manual_seed` reproduces a
            run.
        unbiased: see above.

    Example:
        >>> Directions.sphere(4).tensor(torch.zeros(10, 3)).shape
        torch.Size([4, 10, 3])
    """

    NAME, LETTER, MOST = "directions", "D", 64  # the dims that a tensor of them may have
    ALSO = ()


class Cotangents(Projections):
    """Output directions u whose gradients D m(x)ᵀu are compared, the paper's own stochastic form.

    The distributions and arguments of `Directions`, in output space: for cotangents of unit length
    E[|Jᵀu|²] = |J|² / O, with `unbiased=True` (or `normal`, `rademacher`) |J|². One of them gives a scalar student
    its whole gradient. Those of `sphere(centred=True)` have the sum 0 over the outputs: along them the gradients of
    log-softmax outputs are those of the logits.

    Example:
        >>> Cotangents.sphere(2).tensor(torch.zeros(10, 5)).shape
        torch.Size([2, 10, 5])
    """

    NAME, LETTER, MOST = "cotangents", "O", 3
    ALSO = (CENTRED,)

    @classmethod
    @in_words
    def sphere(
        cls, P: int = 1, *, shared: bool = False, seed: int | None = None, unbiased: bool = False, centred: bool = False
    ) -> Self:
        """P independent ones, uniform on the unit sphere (the paper's), or on its vectors of sum 0 if `centred`."""
        need(type(centred) is bool, "centred", "True or False", centred)
        return cls(CENTRED if centred else "sphere", P, shared, seed, unbiased=unbiased)


def is_capturing(device: torch.device) -> bool:
    """Whether what is done now on a device is not done now, but recorded, for a CUDA graph to do again and again."""
    if device.type != "cuda" or torch.compiler.is_compiling():
        return False
    return torch.cuda.is_current_stream_capturing()


@lru_cache(maxsize=64)
def like_given(kind: type[Projections], P: int) -> Projections:
    """All of given ones [P, N, n] but their tensor: of each step's nothing else is another."""
    return kind("given", P)


def given_of(directions: object, cotangents: object) -> torch.Tensor | None:
    """The tensor of directions or cotangents that were given."""
    chosen = cotangents if directions is None else directions
    return chosen.values if isinstance(chosen, Projections) else None


def offset_of(directions: object, cotangents: object) -> int | None:
    """That of directions or cotangents that are named."""
    chosen = cotangents if directions is None else directions
    return chosen.offset if isinstance(chosen, Projections) else None


for kind in (Directions, Cotangents):
    assert all(hasattr(kind, name) for name in DISTRIBUTIONS), "every distribution has its class method"
