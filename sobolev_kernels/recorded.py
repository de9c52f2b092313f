"""Pairs of a value and its tangents while a compiler traces the call.

Dynamo follows the student as he is, so that whatever he reads is watched. What pairs make of him is recorded beside
that, from the same parameters and buffers, by the tracer below dynamo. All else but the inputs is a constant of the
record: a student who reads more is differentiated by the transforms that dynamo follows.
"""

from __future__ import annotations

import os
import random
import weakref
from operator import index
from typing import NamedTuple

import numpy
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .backends import constant_while_traced, held_by
from .backends.dependence import Jets
from .backends.streams import propagated
from .backends.transformed import transformed, transformed_jet
from .held import Held
from .outputs import outputs_of
from .streams.flowing import NotFollowed
from .streams.look import held_of, looked_at

ROWS = 8
FIRST, SECOND = "first", "second"  # the words that tell to which order pairs flow
# What an operation is told and a record may keep: what dynamo compares before each call.
PLAIN = (bool, int, float, complex, str, type(None), type(...), slice, range)
PLAIN += (torch.dtype, torch.device, torch.layout, torch.memory_format)
RESUMED = "torch_dynamo_resume_in"  # what dynamo calls the rest of a function after a break
FOLLOWED = (torch.float32, torch.float64)
# What makes numbers of a tensor's elements, of which a compiler may take a variable where the record has a constant.
NUMBERS_OF = {getattr(torch.Tensor, name) for name in ("item", "tolist", "numpy", "__array__")}
NUMBERS_OF |= {getattr(torch.Tensor, f"__{kind.__name__}__") for kind in (bool, int, float, complex)}
NUMBERS_OF |= {torch.Tensor.__index__}

STUDENTS: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()


def numbers_of_ours(D: int, dtype: str, device: str) -> torch.Tensor:
    """[ROWS, D], of the dtype of that name."""
    drawn = torch.randn(ROWS, D, generator=torch.Generator().manual_seed(0))
    return drawn.to(device, getattr(torch, dtype.removeprefix("torch.")))


class Recorded(NamedTuple):
    """A student by the number that he is recorded by, with his parameters and buffers, and how far pairs flow."""

    number: int
    tensors: dict[str, torch.Tensor]
    orders: int


class Reads(TorchFunctionMode):
    """Notes whether something is read within it that is neither one of these tensors nor made of them."""

    def __init__(self, tensors: list[torch.Tensor]):
        super().__init__()
        self.known, self.kept, self.more = set(map(id, tensors)), list(tensors), False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.more = self.more or function in NUMBERS_OF or not all(map(self.is_known, tree_leaves((args, kwargs))))
        result = function(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.known.add(id(leaf))
                self.kept.append(leaf)  # so that its id stays its own
        return result

    def is_known(self, leaf: object) -> bool:
        return id(leaf) in self.known if isinstance(leaf, torch.Tensor) else type(leaf) in PLAIN


def recordable(student: nn.Module, x: torch.Tensor) -> str:
    """The words, "" if there are none, of a student at numbers of our own: how far pairs flow, and his number."""
    if x.dtype not in FOLLOWED or not reads_his_own(student, x):
        return ""
    words = [word for order, word in ((1, FIRST), (2, SECOND)) if flows(student, x, order)]
    if FIRST not in words:
        return ""
    torch._dynamo.allow_in_graph(of_pairs)  # loaded here, since importing it takes a second
    # of no other process either, since compilers keep what they make of a number on disk
    number = int.from_bytes(os.urandom(7), "little")
    STUDENTS[number] = student
    return " ".join([*words, str(number)])


def flows(student: nn.Module, x: torch.Tensor, order: int) -> bool:
    return looked_at(student, x, held_of(list(student.modules()), x), order).unfollowed is None


def reads_his_own(student: nn.Module, x: torch.Tensor) -> bool:
    """Whether his values are made of x, his parameters and buffers, and of what dynamo compares before each call; he
    draws nothing, and writes to nothing."""
    modules = list(student.modules())
    if any(isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod") for module in modules):
        return False
    tensors = [x, *student.parameters(), *student.buffers()]
    held = Held(modules, [x.device])
    drawn, versions, attributes = states(), [t._version for t in tensors], [dict(vars(m)) for m in modules]
    try:
        with Reads(tensors) as reads:
            student(x)
    finally:
        unmoved = same(drawn, states()) and versions == [t._version for t in tensors]
        unmoved = unmoved and all(unchanged(before, vars(m)) for before, m in zip(attributes, modules, strict=True))
        held.restore()
    return unmoved and not reads.more


def unchanged(before: dict, after: dict) -> bool:
    return before.keys() == after.keys() and all(after[name] is value for name, value in before.items())


def states() -> tuple:
    return torch.get_rng_state(), *numpy.random.get_state()[1:3], random.getstate()


def same(a: tuple, b: tuple) -> bool:
    return torch.equal(a[0], b[0]) and bool((a[1] == b[1]).all()) and a[2:] == b[2:]


def only_sizes_vary() -> bool:
    """Whether all that the compiler takes for a variable, so far in this trace, is a tensor or a size of one.

    Of other numbers, as of an attribute that is another at each step, dynamo watches the kind alone; and so it does of
    what is NumPy's, which it hands on as a tensor. A tensor of one whole number, as batch norm's count of batches, is a
    variable before anybody has taken its number, and counts if somebody has.
    """
    from torch._dynamo.source import CallMethodItemSource, NumpyTensorSource, TensorPropertySource
    from torch._dynamo.symbolic_convert import InstructionTranslator

    context = torch._guards.TracingContext.try_get()
    environment = None if context is None else context.fake_mode.shape_env
    if environment is None:
        return False
    sources = (source for all_of in environment.var_to_sources.values() for source in all_of)
    output = InstructionTranslator.current_tx().output
    handed = [a for a in output.graphargs if a.source is not None]
    handed_on = any(a.pass_arg_as_tensor or isinstance(a.source, NumpyTensorSource) for a in handed)
    taken = any(node.target == "item" for tracer in output.tracers for node in tracer.graph.nodes)
    kinds = TensorPropertySource if taken else (TensorPropertySource, CallMethodItemSource)
    return not handed_on and all(isinstance(source, kinds) for source in sources)


def traced_below() -> bool:
    """Whether the record is surely made while the call is compiled. A compiler that runs what dynamo hands it would run
    the student as he is at each step, for another one that dynamo takes for him, too."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    compiler = InstructionTranslator.current_tx().output.compiler_fn
    name = getattr(getattr(compiler, "_torchdynamo_orig_backend", compiler), "compiler_name", "")
    return name in ("inductor", "cudagraphs", "aot_eager", "aot_eager_decomp_partition")


def followed_him() -> bool:
    """Whether dynamo is still in the graph in which it followed his forward: where it resumed one of our functions
    after a break, nothing is watched that he read before that."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    frame, package = InstructionTranslator.current_tx(), os.path.dirname(__file__)
    if frame is None:
        return False
    while frame is not None:
        if frame.f_code.co_name.startswith(RESUMED) and frame.f_code.co_filename.startswith(package):
            return False
        root, frame = frame, getattr(frame, "parent", None)
    # a frame that is none of those which users call is followed by itself where there was a break before it
    return not root.f_code.co_filename.startswith((os.path.join(package, "call.py"), os.path.join(package, "backends")))


@constant_while_traced
def told_in_trace(module: int, D: int, dtype: str, device: str) -> str:
    """What is `recordable` of the module of that `id`, anew in each trace: dynamo traces again since something that he
    reads is another.

    So the number is another one as well, by which nothing is found that a compiler has kept of the last one.
    """
    try:
        return recordable(held_by(module), numbers_of_ours(D, dtype, device))
    except Exception:
        return ""


@constant_while_traced
def all_is_watched() -> bool:
    """Whether dynamo, which has followed the student just now, compares all that he reads before each call."""
    try:
        return traced_below() and followed_him() and only_sizes_vary() and not writes_later()
    except Exception:
        return False


def writes_later() -> bool:
    """Whether the call has written to an object that was there before, as by `student.alpha = 2`: dynamo writes when
    the compiled call is over, so that a record would read what was there before."""
    from torch._dynamo.symbolic_convert import InstructionTranslator
    from torch._dynamo.variables.base import AttributeMutationExisting, ValueMutationExisting

    effects, there = InstructionTranslator.current_tx().output.side_effects, AttributeMutationExisting
    known = effects.id_to_variable.values()
    return any(isinstance(v.mutation_type, (there, ValueMutationExisting)) and effects.is_modified(v) for v in known)


def recorded_of(student: nn.Module, x: torch.Tensor) -> Recorded | None:
    """What is told of a student who is traced, and what he is made of."""
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return None
    words = told_in_trace(id(student), index(x.shape[1]), str(x.dtype), x.device.type).split()
    if not words:
        return None
    return Recorded(int(words[-1]), tensors_in(student), 2 if SECOND in words else 1)


def tensors_in(module: nn.Module, path: str = "") -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, found as dynamo has found them already; named_parameters it would watch, too."""
    own = *module._parameters.items(), *module._buffers.items()
    named = {f"{path}{name}": tensor for name, tensor in own if tensor is not None}
    for name, child in module._modules.items():
        if child is not None:
            named |= tensors_in(child, f"{path}{name}.")
    return named


def recorded_jet(recorded: Recorded, x: torch.Tensor, v: torch.Tensor, order: int) -> Jets:
    """y, tangents and second derivatives along v [P, N, D]."""
    y, streams = of_pairs(recorded.number, x, v, recorded.tensors, order)
    return (y, streams, None) if order == 1 else (y, *streams.split([len(v), len(v)]))


def of_pairs(number: int, x: torch.Tensor, v: torch.Tensor, tensors: dict[str, torch.Tensor], order: int):
    """What the tracer below dynamo runs, and dynamo does not follow: by the transforms after all, if pairs do not flow
    here as they did before."""
    student = STUDENTS.get(number)
    if student is None:
        raise RuntimeError("the student of this compiled step is no more: compile it again")
    function = lambda x: torch.func.functional_call(student, dict(tensors), (x,))  # noqa: E731
    held = Held(student.modules(), buffers=False)
    try:
        return propagated(function, x, v, order=order)
    except NotFollowed:
        held.restore()
        ran = transformed(lambda x: outputs_of(function, x), x)._replace(looked=order)
        y, *streams = transformed_jet(ran, v, order)
        return y, streams[0] if order == 1 else torch.cat(streams)
    finally:
        held.restore()
