"""A forward of values alone in which chains of layers are put off, so that autograd meets each as one operation.

All else is PyTorch's own, called with numbers. Whatever could tell that something was put off ends the run: the student
is then run as he is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.autograd import forward_ad
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..autocast import casting
from ..boundary import PLAIN
from .flowing import NotFollowed, Run, is_of_checkpoint, spelt
from .rules import RULES, products
from .segments import Delaying, Pending, Segments, Step, are_of_layer, numbers_of
from .singles import SINGLES, Single

HELD = "something keeps what was put off"


class Value(Pending):
    """A value that is computed when it is asked for."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return called(function, args, kwargs)


def called(function: Callable, args: tuple, kwargs: dict | None) -> object:
    """By its rule if that puts off, or of the numbers."""
    run = args[0].run if args and type(args[0]) is Value else run_of(args, kwargs)
    run.need_graph()
    if function in LINEAR:
        run.segments.calls += 1
    rule = VALUED.get(function)
    if rule is not None:
        made = rule(*args, **kwargs) if kwargs else rule(*args)
        if run.segments.calls_of is not None:
            run.segments.note(made, function, args, kwargs)
        return made
    args = settled(args)
    return function(*args, **settled(kwargs)) if kwargs else function(*args)


def run_of(*arguments: object) -> Run | None:
    for argument in arguments:
        if isinstance(argument, Value):
            return argument.run
        if isinstance(argument, (tuple, list, dict)):
            run = run_of(*(argument.values() if isinstance(argument, dict) else argument))
            if run is not None:
                return run
    return None


def settled(x: object) -> object:
    """Of what was put off its numbers, also in lists; all else as it is."""
    if isinstance(x, Value):
        return numbers_of(x)[0]
    if type(x) in (tuple, list):
        return type(x)(map(settled, x))
    return {name: settled(value) for name, value in x.items()} if type(x) is dict else x


class Deferring(TorchFunctionMode):
    """Within it layers of what has a graph are put off."""

    def __init__(self, run: Run):
        super().__init__()
        self.run = run

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if Value in types:
            return called(function, args, kwargs)
        segments, begin = self.run.segments, LINEAR.get(function)
        segments.functions += 1
        single = SINGLES.get(function)
        if single is not None:
            made = self.alone(single, args, kwargs)
            return made if made is not None else function(*args, **kwargs) if kwargs else function(*args)
        if begin is not None:
            segments.calls += 1
            wanted = segments.begun is None or segments.calls in segments.begun
            if wanted and args and self.may_begin(args[0]):
                begun = begin(self.run, *args, **(kwargs or {}))
                if begun is not None:
                    if segments.calls_of is not None:
                        segments.note(begun, function, args, kwargs)
                    return begun
        return function(*args, **kwargs) if kwargs else function(*args)

    def alone(self, single: Single, args: tuple, kwargs: dict | None) -> torch.Tensor | tuple | None:
        """What an operation of its own gives; None where it is PyTorch's."""
        segments, kwargs = self.run.segments, kwargs or {}
        segments.met += 1
        if segments.singles is not None:
            return made_alone(single, args, kwargs) if segments.met in segments.singles else None
        with torch._C.DisableTorchFunction():
            saved = single.saves(*args, **kwargs)
        made = made_alone(single, args, kwargs) if saved > 0 else None
        if made is not None:
            segments.done.add(segments.met)
            segments.saved += saved
        return made

    def may_begin(self, input: object) -> bool:
        """Whether a layer of it may be computed later."""
        run = self.run
        if type(input) not in PLAIN or not input.requires_grad:
            return False
        if input.dtype is not run.dtype or input.device != run.device or not input.dim() or not is_usual(input):
            return False
        return torch.is_grad_enabled() and GRAPH_TASK() == -1 and SAVING(True) is None


def made_alone(single: Single, args: tuple, kwargs: dict) -> torch.Tensor | tuple | None:
    """What an operation of its own gives, whose input has a graph; None where it is PyTorch's."""
    if not args or not getattr(args[0], "requires_grad", False) or not torch.is_grad_enabled():
        return None
    if GRAPH_TASK() != -1 or SAVING(True) is not None or casting(args[0].device.type) is not None:
        return None
    with torch._C.DisableTorchFunction():  # within all modes, as a function of PyTorch's
        return single.made(*args, **kwargs)


class Alone(TorchFunctionMode):
    """Within it these operations are our own, counted as those that may be, and no layer is put off."""

    def __init__(self, singles: frozenset[int]):
        super().__init__()
        self.singles, self.met = singles, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        single = SINGLES.get(function)
        if single is not None:
            self.met += 1
            made = made_alone(single, args, kwargs or {}) if self.met in self.singles else None
            if made is not None:
                return made
        return function(*args, **kwargs) if kwargs else function(*args)


def is_usual(tensor: torch.Tensor) -> bool:
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return not transformed and tensor.layout is torch.strided and not tensor.is_neg() and not tensor.is_inference()


def nobody_watches() -> bool:
    """Whether nobody counts functions, and no checkpoint, nor another hook of saved tensors, saves the same again."""
    return torch._C._len_torch_function_stack() == 0 and SAVING(True) is None


GRAPH_TASK, SAVING = torch._C._current_graph_task_id, torch._C._autograd._top_saved_tensors_default_hooks


def marks_of(*tensors: torch.Tensor) -> list[tuple]:
    return [(tensor, tensor._version, tensor.data_ptr(), None) for tensor in tensors]


@dataclass(eq=False)
class ValueSegments(Segments):
    """Those of values alone. Numbers that were computed are looked at again when others are made of them: PyTorch may
    write to them. A place is that of a call of a linear layer, and how many operations followed it; `begun` are the
    calls that begin a chain which is fused, if that is known: no others are put off.
    """

    begun: frozenset[int] | None = None
    calls: int = 0  # of linear layers so far
    followed: dict[int, int] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)
    functions: int = 0  # of PyTorch's that were met
    singles: frozenset[int] | None = None  # the operations that are our own (singles/), if that is known
    met: int = 0  # of operations that may be so far
    done: set[int] = field(default_factory=set)  # of a first run those that were
    saved: float = 0.0  # µs, by these
    saving: float = 0.0  # by the chains that were fused
    by_heart: Callable | None = None  # the numbers of a chain that is known (by_heart.py)
    # Of a run that is to be known by heart: the calls that made each step; and the steps of each chain, by the call.
    calls_of: dict[Step, tuple] | None = None
    chains: dict[int, list[Step]] = field(default_factory=dict)

    def note(self, made: object, function: Callable, args: tuple, kwargs: dict | None) -> None:
        """Which call made a step that has no numbers yet."""
        if type(made) is Value and made.step.numbers is None and made.step not in self.calls_of:
            before, *others = args or (None,)
            goes_on = type(before) is not Value or before.step is made.step.before
            plain = goes_on and run_of(others, kwargs) is None
            # what was changed in place is no longer what the call was given
            self.calls_of[made.step] = (function, others, kwargs or {}) if plain and made is not before else None

    def next_place(self, after: Step | None = None) -> int:
        if after is None:
            return self.calls * MOST
        call = after.place // MOST
        self.followed[call] = count = self.followed.get(call, 0) + 1
        return call * MOST + count

    def through(self, step: Step, chain: list[Step], P: int | None) -> bool:
        fused = super().through(step, chain, P)
        if fused:
            begun = chain[0].place // MOST
            self.taken.add(begun)
            self.chains[begun] = chain
        return fused

    def settle(self, run: Run, step: Step) -> tuple[torch.Tensor, ...]:
        if step.numbers is not None:
            return super().settle(run, step)
        with torch._C.DisableTorchFunction():  # as by an attribute that was asked for, within all modes
            numbers = super().settle(run, step)
            step.marks = marks_of(*numbers)
        return numbers


MOST = 1 << 16  # operations after a layer


def deferred(
    function: Callable, segments_of: Callable[[], Segments], mode_of: Callable[[Run], TorchFunctionMode] = Deferring
) -> Callable[[torch.Tensor], torch.Tensor]:  # fmt: skip
    """The function with chains of layers put off.

    Raises:
        NotFollowed: something in it could tell.
    """

    def run_of_it(x: torch.Tensor) -> torch.Tensor:
        run = Run({}, x.dtype, x.device, bodies=True, segments=segments_of())
        try:
            with mode_of(run):
                result = function(x)
            result = settled(result)
        except Exception as error:  # whatever it is: run as it is, the function says it himself
            if is_of_checkpoint(error):
                raise
            raise NotFollowed(run.reason or f"{type(error).__name__} in it: {error}") from error
        if run.reason:
            raise NotFollowed(run.reason)
        if run.is_held():
            raise NotFollowed(HELD)
        return result

    return run_of_it


def by_numbers(function: Callable) -> Callable:
    return lambda *args, **kwargs: function(*settled(args), **settled(kwargs))


def alone(function: Callable, singles: frozenset[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function with these operations our own."""

    def run_of_it(x: torch.Tensor) -> torch.Tensor:
        with Alone(singles):
            return function(x)

    return run_of_it


VALUES = Delaying(
    Value, *map(by_numbers, (functional.linear, torch.matmul, torch.mul, torch.add)),
    layer=lambda weight, bias: lambda v: (functional.linear(v, weight, bias),),
    own=lambda run, plain, arguments, named: lambda v: (plain(v, *arguments, **named),),
)  # fmt: skip


def dropout(input, p=0.5, training=True, inplace=False):
    return input if not training or p == 0 else functional.dropout(settled(input), p, training, inplace)


def begin_linear(run: Run, input, weight, bias=None) -> Value | None:
    """A layer of numbers put off; None if it is not."""
    sizes = tuple(input.shape)
    if not are_of_layer(run, sizes[-1], weight, bias):
        return None
    return VALUES.beginning(run, Step(None, None, -1, marks=marks_of(input), numbers=(input,)), sizes, weight, bias)


def begin_matmul(run: Run, input, other) -> Value | None:
    if isinstance(other, torch.Tensor) and other.dim() == 2:
        with torch._C.DisableTorchFunction():  # no mode is told of it, which is no part of the run
            weight = other.t()
        return begin_linear(run, input, weight)
    return None


BEGINNING = {products.linear: begin_linear, products.matmul: begin_matmul}
VALUED = VALUES.segmented({function: by_numbers(function) for function in RULES}, RULES)
VALUED |= dict.fromkeys(spelt("dropout"), dropout)
LINEAR = {function: BEGINNING[rule] for function, rule in RULES.items() if rule in BEGINNING}
