"""A tensor without numbers that stands for one while a forward is run, and tells what is done to it.

It is a torch.Tensor, so that a forward that asks gets the usual answer. PyTorch hands every function of its own that
meets one to the run's table of rules. What has no rule, and whatever reaches the dispatcher past the table, as a custom
autograd.Function or a scripted module does, ends the run: nothing is ever left out of it silently.
"""

from __future__ import annotations

import inspect
import math
import sys
import types
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache

import torch
from torch.nn import functional

from ..autocast import casting
from ..backends.reads import name_of
from ..problem import NESTED

current_level = torch._C._functorch.maybe_current_level

SPACES = (torch, torch.Tensor, functional, torch._C._nn, torch.special)


class NotFollowed(Exception):
    """A forward did something that the run has no rule for."""


@dataclass(eq=False)
class Run:
    """One run of a forward: the rules it goes by, and what became of it."""

    rules: dict[Callable, Callable]
    dtype: torch.dtype
    device: torch.device
    wanted: bool = False  # whether the input asks for a gradient
    cast: torch.dtype | None = None
    reason: str = ""  # why it was not followed; a forward may have caught the exception
    made: list[weakref.ref] = field(default_factory=list)
    bodies: bool = False  # whether a function without a rule may be run as it is written, if that is in Python
    trusted: dict[Callable, Callable] = field(default_factory=dict)  # rules by a jvp of PyTorch's
    counts: dict[str, int] | None = None  # of the functions that were called, by name
    without_rule: dict[str, int] | None = None  # those of them that went by their body, or by a jvp
    hooks: list[Callable] = field(default_factory=list)  # to be called before gradients come to the weights
    lacks: str = "has no rule"  # what is said of a function that is in none of its tables
    segments: object | None = None  # how chains of layers are put off (segments.py), if they are
    x: torch.Tensor | None = None  # the inputs of a chain, as backward hooks see them
    level: int | None = None  # of the transforms of torch.func that it is run in
    looking: list[tuple] = field(default_factory=list)  # what those put on its outputs, and where (backward_hooks.py)

    def __post_init__(self):
        self.cast, self.level = self.casting(), current_level()

    def casting(self) -> torch.dtype | None:
        return casting(self.device.type)

    def stop(self, reason: str) -> None:
        reason = NESTED if self.bodies and is_nested() else reason
        self.reason = self.reason or reason
        raise NotFollowed(reason)

    def need_graph(self) -> None:
        """In no_grad, and in the forward of an autograd.Function, what is done is not what is differentiated."""
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            self.stop("a part of it is run without gradients, in an autograd.Function, or with hooks of its backward")
        self.need_level()
        if not self.bodies and self.casting() != self.cast:  # whose layers would be of several precisions
            self.stop("a part of it is run in another autocast")

    def need_level(self) -> None:
        """A transform of torch.func computes with other tensors than those that flow, or stand for them."""
        if current_level() != self.level:
            self.stop(TRANSFORM)

    def is_held(self) -> bool:
        """Whether something that flowed is still held by someone, who would not get a tensor with numbers."""
        return any(ref() is not None for ref in self.made)


class Flowing(torch.Tensor):
    """What flows through a forward; `sizes` is its shape."""

    run: Run
    sizes: tuple[int, ...]

    @classmethod
    def make(cls, run: Run, sizes: tuple[int, ...]) -> Flowing:
        self = torch.Tensor._make_wrapper_subclass(cls, sizes, dtype=run.dtype, device=run.device, requires_grad=True)
        self.run, self.sizes = run, tuple(sizes)
        run.made.append(weakref.ref(self))
        return self

    def asks(self) -> bool:
        """Whether it would ask for a gradient if it had numbers."""
        return self.run.wanted

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        run = args[0].run if args and isinstance(args[0], Flowing) else run_of((*args, *(kwargs or {}).values()))
        rule = run.rules.get(function)
        counts = run.counts
        if rule is None and run.bodies:
            rule, counts = body(function) or run.trusted.get(function), run.without_rule
        if rule is None:
            run.stop(f"{name_of(function)} in it {run.lacks}")
        run.need_graph()
        if counts is not None:
            name = name_of(function)
            counts[name] = counts.get(name, 0) + 1
        try:
            return rule(*args, **kwargs) if kwargs else rule(*args)
        except NotFollowed:
            raise
        except RecursionError:  # a body in Python that calls itself, past all rules
            run.stop(f"{name_of(function)} in it {run.lacks}")
        except Exception as error:  # arguments that the rule does not know
            if is_of_checkpoint(error):
                raise
            run.stop(f"{name_of(function)} in it ({error})")

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        what = f"{name_of(function)} in it, past torch's functions"
        for package, word in ((CHECKPOINT, f"{CHECKPOINT} in it"), ("torch._functorch", TRANSFORM)):
            what = word if asked_by(package) else what
        run_of((*args, *(kwargs or {}).values())).stop(what)


CHECKPOINT, FSDP = "torch.utils.checkpoint", "torch.distributed.fsdp"
TRANSFORM = "a transform of torch.func in it, as vmap or grad"


def asked_by(package: str, name: str = "") -> bool:
    """Whether a function of this package, with such a name, is running."""
    frame = sys._getframe(1)
    while frame is not None:
        if name in frame.f_code.co_name and frame.f_globals.get("__name__", "").startswith(package):
            return True
        frame = frame.f_back
    return False


def is_nested() -> bool:
    """Whether what pairs met is within a call of this library's that the forward makes."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "propagated":
        if frame.f_globals.get("__name__") == "sobolev_kernels.call":
            return True
        frame = frame.f_back
    return False


def run_of(arguments: tuple) -> Run:
    for argument in arguments:
        if isinstance(argument, Flowing):
            return argument.run
        if isinstance(argument, (tuple, list)) and (run := run_of(tuple(argument))) is not None:
            return run


HOMES = "torch.nn.functional", "torch.functional"
CAUGHT = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


@cache
def body(function: Callable) -> Callable | None:
    """A function that PyTorch has written in Python, whose own calls come to the rules one by one."""
    return body_with(function) if inspect.isfunction(function) and function.__module__ in HOMES else None


def projected(q, k, v, w, b=None):
    """PyTorch's `_in_projection_packed`; of self-attention its three parts in one operation, whose gradients are
    joined once: of three indices each would be written into zeros."""
    if not (q is k and k is v):
        return functional._in_projection_packed(q, k, v, w, b)
    made = functional.linear(q, w, b).unflatten(-1, (3, q.size(-1)))
    return made.unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous().unbind(0)


OTHERS = {functional.multi_head_attention_forward: {"_in_projection_packed": projected}}


def body_with(function: Callable, **others: Callable) -> Callable:
    """The same with others in the place of functions that it calls by these names."""
    others = OTHERS.get(function, {}) | others
    scope = function.__globals__ | dict.fromkeys(CAUGHT, lambda *_: False) | others
    copy = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def spelt(*names: str, spaces: tuple = SPACES) -> list[Callable]:
    """All functions and methods of PyTorch by these names."""
    found = (getattr(space, name, None) for name in names for space in spaces)
    return [function for function in found if callable(function)]  # torch.float is a dtype


def is_finite(value: object) -> bool:
    """Whether it is a plain number, by which all can be multiplied."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def told(attribute: str) -> Callable:
    """How a property of tensors is asked for."""
    return getattr(torch.Tensor, attribute).__get__


def dtype_of(input: Flowing) -> torch.dtype:
    if input.run.cast:
        input.run.stop("its dtype is asked for in autocast")
    return input.run.dtype


def size(input: Flowing, dim: int | None = None):
    return torch.Size(input.sizes) if dim is None else input.sizes[dim]


def numel(input: Flowing) -> int:
    return torch.Size(input.sizes).numel()


def requires_grad(input: Flowing) -> bool:
    """FSDP would ask to be told by an autograd.Function when a backward is over; else it looks at its end."""
    return input.asks() and not (FSDP in sys.modules and asked_by(FSDP, "post_backward"))


# What a tensor is, and none of its numbers.
ABOUT: dict[Callable, Callable] = {
    told("shape"): size,
    told("dtype"): dtype_of,
    told("device"): lambda input: input.run.device,
    told("ndim"): lambda input: len(input.sizes),
    told("requires_grad"): requires_grad,
    told("_base"): lambda input: None,
    told("layout"): lambda input: torch.strided,
    told("is_cuda"): lambda input: input.run.device.type == "cuda",
    told("is_cpu"): lambda input: input.run.device.type == "cpu",
    **dict.fromkeys(
        (told(f"is_{what}") for what in ("nested", "sparse", "quantized", "meta", "mkldnn")), lambda _: False
    ),
    **dict.fromkeys(spelt("size"), size),
    **dict.fromkeys(spelt("dim", "ndimension"), lambda input: len(input.sizes)),
    **dict.fromkeys(spelt("numel", "nelement"), numel),
    **dict.fromkeys(spelt("__len__"), lambda input: input.sizes[0]),
    **dict.fromkeys(spelt("is_floating_point"), lambda input: True),
    **dict.fromkeys(spelt("is_complex"), lambda input: False),
}


def register_hook(input: Flowing, hook: Callable) -> None:
    """FSDP only wants to know that a backward begins, before any gradient comes to its weights."""
    home = getattr(getattr(hook, "func", hook), "__module__", "") or ""
    if not home.startswith(FSDP):
        input.run.stop("a hook of a tensor in it")
    input.run.hooks.append(hook)


def attach(hooks: list[Callable], results: Iterable[torch.Tensor | None]) -> None:
    """Call them before the gradients of results go on to the weights."""
    for result in results:
        if hooks and result is not None and result.requires_grad:
            for hook in hooks:
                result.register_hook(hook)


def is_of_checkpoint(error: Exception) -> bool:
    """Whether torch.utils.checkpoint ends what it runs again, since it has all that it wanted."""
    return type(error).__module__ == CHECKPOINT
