"""Runs a function so that autograd's derivatives of it are right, however often taken; or says why they are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from operator import index
from threading import Lock
from types import ModuleType
from typing import NamedTuple

import torch
from torch._C._dynamo.eval_frame import get_eval_frame_callback, set_eval_frame
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ..errors import NotProvided, describe
from .graph import STATISTICS
from .reads import GIVING, STEPWISE, depend_on, is_cut, is_transformed, name_of, read_by, takes_numbers
from .standard import Standardised, fits

HALF = (torch.bfloat16, torch.float16)


def standardised(x: torch.Tensor, dims: tuple[int, ...], eps: float, centred: bool = True) -> torch.Tensor:
    """x without its mean and of mean square 1 over dims, in at least float32."""
    x = x.float() if x.dtype in HALF else x
    x = x - x.mean(dims, keepdim=True) if centred else x
    return x * (x.square().mean(dims, keepdim=True) + eps).rsqrt()


def affine(y: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, dtype: torch.dtype):
    if weight is not None and bias is not None and not torch.compiler.is_compiling():  # which would save more
        return torch.addcmul(bias, y, weight).to(dtype)
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias).to(dtype)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    n = len(normalized_shape)
    if fits(input) and tuple(normalized_shape) == tuple(input.shape[-n:]):
        return affine(Standardised.apply(input, n, eps), weight, bias, input.dtype)
    dims = tuple(range(-n, 0))
    return affine(standardised(input, dims, eps), weight, bias, input.dtype)


def native_layer_norm(input, normalized_shape, weight, bias, eps):
    """y, mean and 1 / deviation, of which torch differentiates y alone."""
    with torch.no_grad():
        _, mean, scale = torch.native_layer_norm(input, normalized_shape, weight, bias, eps)
    return layer_norm(input, normalized_shape, weight, bias, eps), mean, scale


def rms_norm(input, normalized_shape, weight=None, eps=None):
    dims = tuple(range(-len(normalized_shape), 0))
    # PyTorch's own is that of the dtype it computes in
    eps = torch.finfo(torch.float32 if input.dtype in HALF else input.dtype).eps if eps is None else eps
    return affine(standardised(input, dims, eps, centred=False), weight, None, input.dtype)


def instance_norm(
    input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5
):
    """Over the positions of each channel of each sample; otherwise an affine map, which torch differentiates right."""
    if running_mean is not None:
        arguments = running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        if not use_input_stats:
            return functional.instance_norm(input, *arguments)
        with torch.no_grad():
            functional.instance_norm(input, *arguments)
    positions = (1,) * (input.dim() - 2)
    weight, bias = (None if t is None else t.reshape(-1, *positions) for t in (weight, bias))
    return affine(standardised(input, tuple(range(2, input.dim())), eps), weight, bias, input.dtype)


def torch_instance_norm(
    input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled=True
):
    """The same in another order of arguments."""
    return instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def hardsigmoid(input, inplace=False):
    y = functional.relu6(input + 3) / 6
    return input.copy_(y) if inplace else y


def cdist(x1, x2, p=2.0, compute_mode=None):
    return distances(x1.unsqueeze(-2) - x2.unsqueeze(-3), p)


def pdist(input, p=2.0):
    i, j = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return distances(input[i] - input[j], p)


def distances(between: torch.Tensor, p: float) -> torch.Tensor:
    """The norms of the last dim, of which that of 0 has derivatives 0."""
    if p != 2:
        return torch.linalg.vector_norm(between, p, -1)
    squares = between.square().sum(-1)
    return torch.where(squares == 0, 0.0, torch.where(squares == 0, 1.0, squares).sqrt())


def spellings(name: str) -> Iterator[Callable]:
    """What an operation is called by below torch.nn.functional."""
    packet = getattr(torch.ops.aten, name)
    yield from (getattr(torch, name), packet, packet.default)


# torch's own take mean and deviation for constants in their third derivative (pytorch#196700)
WRITTEN = {functional.layer_norm: layer_norm, functional.rms_norm: rms_norm, functional.instance_norm: instance_norm}
for name, written in (
    ("layer_norm", layer_norm), ("native_layer_norm", native_layer_norm), ("rms_norm", rms_norm),
    ("instance_norm", torch_instance_norm),
):  # fmt: skip
    WRITTEN |= dict.fromkeys(spellings(name), written)
# of whose derivative torch has no derivative
WRITTEN |= dict.fromkeys((functional.hardsigmoid, torch._C._nn.hardsigmoid), hardsigmoid)
WRITTEN |= {torch.cdist: cdist, torch.pdist: pdist, functional.pdist: pdist}
# all with `training` as their sixth argument
BATCH_NORMS = {functional.batch_norm}
for name in (
    "batch_norm",
    "native_batch_norm",
    "cudnn_batch_norm",
    "_batch_norm_impl_index",
    "_native_batch_norm_legit",
):
    BATCH_NORMS |= set(spellings(name))


def linear_of_rows(input, weight, bias=None):
    """Of inputs as rows: of others torch.func takes the number of samples for a constant of the graph."""
    if input.dim() < 3:
        return functional.linear(input, weight, bias)
    return functional.linear(input.flatten(0, -2), weight, bias).unflatten(0, input.shape[:-1])


def fixed_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    """Batch norm of statistics that are known, an affine map; torch's own second derivative has the number of samples
    for a constant of the graph."""
    whole = torch.promote_types(input.dtype, torch.float32)
    scale, shape = (running_var + eps).rsqrt(), (-1, *(1,) * (input.dim() - 2))
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    return (input.to(whole) * scale.view(shape) + shift.view(shape)).to(input.dtype)


class Needs(NamedTuple):
    """Of the contexts of `exactly`, those that something needs which was run in them."""

    norms: bool = True
    attention: bool = True
    reads: bool = True


ATTENTION = {functional.scaled_dot_product_attention, functional.multi_head_attention_forward}
# Whose second derivative is not compiled for sizes that are variables ("Cannot call numel() on tensor with symbolic
# sizes"), in PyTorch before 2.13.
CONVOLUTIONS = {getattr(torch, f"conv{kind}{n}d") for kind in ("", "_transpose") for n in (1, 2, 3)}
CONVOLUTIONS = CONVOLUTIONS if torch.__version__ < (2, 13) else set()
CHOOSING = {functional.embedding, functional.embedding_bag, functional.one_hot}  # by whole numbers
DEPENDING = {*WRITTEN, *BATCH_NORMS, *ATTENTION, *CHOOSING}
BY_WHOLE_NUMBERS = (
    "student: expected a forward of floating numbers, got {} of {}, which chooses by whole numbers, and these have no "
    "derivative; bind what is no number by a closure, as lambda x: student(labels, x), or round in the forward, as by "
    "x[:, 0].long()"
)


class ExactNorms(TorchFunctionMode):
    """Norms are written out in steps that autograd differentiates any number of times, or refused.

    `norms`, `attention`: one was run, or what may run one; `checkpointed`: a part of it will be run again; `reads`:
    numbers were taken out of tensors, by which what is run may be another each time; `read`: by what those were taken
    that depend on what it watches; `cuts`: whether constants were made of what does.
    """

    def __init__(self):
        super().__init__()
        self.norms = self.attention = self.checkpointed = self.reads = self.cuts = False
        self.node: torch.autograd.graph.Node | None = None
        self.read = ""

    def watch(self, x: torch.Tensor) -> None:
        """Find what takes numbers of what depends on x, which asks for its gradient."""
        self.node = get_gradient_edge(x).node

    def note(self, function: Callable, args: tuple, kwargs: dict | None) -> None:
        """That it takes numbers out of tensors, or goes by them."""
        self.reads = True
        if self.read or function in STEPWISE:
            return
        tensors = read_by(function, args, kwargs)
        if any(map(is_transformed, tensors)) if self.node is None else depend_on(self.node, tensors):
            self.read = name_of(function)

    def note_cut(self, function: Callable, args: tuple, kwargs: dict | None) -> None:
        """That it makes a constant of tensors."""
        if not self.cuts and self.node is not None:
            here = function is torch.Tensor.detach_  # of which the graph is gone
            self.cuts = here or depend_on(self.node, read_by(function, args, kwargs))

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = self.made_by(function, args, kwargs)
        if not torch.compiler.is_compiling() and is_cut(function, made):
            self.note_cut(function, args, kwargs)
        return made

    def made_by(self, function: Callable, args: tuple, kwargs: dict | None) -> object:
        if torch.compiler.is_compiling():
            if function is torch.Tensor.unflatten:  # whose super() dynamo does not follow but in a method's call
                return args[0].unflatten(*args[1:], **(kwargs or {}))
            if function is functional.linear:
                return linear_of_rows(*args, **(kwargs or {}))
            if function in CONVOLUTIONS:
                index(args[0].shape[0])  # the compiler takes it for a number then, and traces again for another one
            if function in GIVING:  # at most a compiler makes a variable of it, which is a constant to a transform
                self.read = self.read or function.__name__
        elif saving(True) is not None and recompute_alike():
            self.norms = self.attention = self.checkpointed = True
        if function not in DEPENDING:
            made = function(*args, **kwargs) if kwargs else function(*args)
            if not torch.compiler.is_compiling() and (function in STEPWISE or takes_numbers(function, made)):
                self.note(function, args, kwargs)
            return made
        kwargs = kwargs or {}
        if function in ATTENTION:
            self.attention = True
            return function(*args, **kwargs)
        if function in CHOOSING:
            chosen = args[0] if args else kwargs["input"]
            if chosen.is_floating_point():
                raise NotProvided(BY_WHOLE_NUMBERS.format(name_of(function), describe(chosen)))
            return function(*args, **kwargs)
        self.norms = True
        if function in BATCH_NORMS and (args[5] if len(args) > 5 else kwargs.get("training")):
            raise NotProvided(STATISTICS)
        if function is functional.batch_norm and torch.compiler.is_compiling():
            return fixed_norm(*args, **kwargs)
        return WRITTEN.get(function, function)(*args, **kwargs)


saving = torch._C._autograd._top_saved_tensors_default_hooks


def packing() -> Callable | None:
    """What packs the tensors that graphs save now, if somebody asked for that."""
    hooks = saving(True)
    return None if hooks is None else hooks[0]


def is_checkpointed() -> bool:
    """Whether a checkpoint is around what is run, which keeps nothing, or runs it again and compares what is saved."""
    return getattr(packing(), "__qualname__", "").startswith(("_checkpoint_hook.", "_recomputation_hook."))


def recompute_alike() -> bool:
    """Within torch.utils.checkpoint, which is returned, it shall recompute in the contexts that it computes in."""
    pack = packing()
    if not getattr(pack, "__qualname__", "").startswith("_checkpoint_hook."):
        return False
    frame = dict(zip(pack.__code__.co_freevars, pack.__closure__ or (), strict=False)).get("frame")
    if frame is None:
        raise NotProvided("torch.utils.checkpoint: not in this version of PyTorch; call the student without it")
    frame, seen = frame.cell_contents, "sobolev_kernels_contexts"
    if not hasattr(frame, seen):
        setattr(frame, seen, True)
        frame.recompute_fn = exactly()(frame.recompute_fn)
    return True


class Eagerly:
    """Within it nothing is compiled, as by `torch.compiler.set_stance("force_eager")` in a tenth of its time.

    A stance is that of all threads: the one that was is back when the last of those that are within it leaves.
    """

    stance, backend, skip_guard_eval_unsafe = "force_eager", None, False
    checkpointed, read, cuts = False, "", None
    lock, within, before = Lock(), 0, None

    def watch(self, x: torch.Tensor) -> None:
        """Nobody does."""

    def __enter__(self) -> Eagerly:
        frames = frames_of_dynamo()
        with Eagerly.lock:
            # one that what is run within it has taken, which is back with this
            self.other = None if isinstance(frames._stance, Eagerly) else frames._stance
            if not Eagerly.within:
                Eagerly.before, self.other = frames._stance, None
            Eagerly.within += 1
            frames._stance = self
        # that of a region that is compiled in part, of which this is run as it is
        self.callback = get_eval_frame_callback()
        if self.callback is not None:
            set_eval_frame(None)
        return self

    def __exit__(self, *_) -> None:
        frames = frames_of_dynamo()
        with Eagerly.lock:
            Eagerly.within -= 1
            if not Eagerly.within:
                frames._stance = Eagerly.before
            elif self.other is not None:
                frames._stance = self.other
        if self.callback is not None:
            set_eval_frame(self.callback)


class Mathematically:
    """Within it attention is of the kernel that has second derivatives; of all threads in the same manner."""

    lock, within, context = Lock(), 0, None

    def __enter__(self) -> None:
        with Mathematically.lock:
            if not Mathematically.within:
                Mathematically.context = sdpa_kernel(SDPBackend.MATH)
                Mathematically.context.__enter__()
            Mathematically.within += 1

    def __exit__(self, *_) -> None:
        with Mathematically.lock:
            Mathematically.within -= 1
            if not Mathematically.within:
                Mathematically.context.__exit__(None, None, None)


@cache
def frames_of_dynamo() -> ModuleType:
    """Whose import takes a second, the first time."""
    from torch._dynamo import eval_frame

    return eval_frame


def keeps_graphs() -> bool:
    """Whether autograd keeps a graph in the mode that the call came in."""
    return torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@contextmanager
def graphs() -> Iterator[None]:
    """In which autograd keeps a graph, whatever mode the call came in."""
    with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext(), torch.enable_grad():
        try:
            yield
        except RuntimeError as error:
            if "Inference tensors" not in str(error):
                raise
            raise NotProvided(
                "inference mode: the function holds tensors that were made in it; use no_grad()"
            ) from error


class Contexts:
    """In which a function is run, so that its graph can be differentiated again and again; or those of them that it is
    known to need, where autograd keeps a graph anyway. `needs`, which it did."""

    def __init__(self, known: Needs | None = None):
        self.known, self.needs = known, Needs()

    def __enter__(self) -> Contexts:
        self.stack, known = ExitStack(), self.known or Needs()
        enter = self.stack.enter_context
        if self.known is None:
            enter(graphs())
        if known.attention:  # the other kernels of it have no second derivative
            enter(Mathematically())
        enter(Eagerly())  # nor has what AOTAutograd compiles
        self.mode = enter(ExactNorms()) if known.norms or known.reads else None
        return self

    def watch(self, x: torch.Tensor) -> None:
        """Find what takes numbers of what depends on x, which asks for its gradient."""
        if self.mode is not None:
            self.mode.watch(x)

    @property
    def read(self) -> str:
        return "" if self.mode is None else self.mode.read

    @property
    def checkpointed(self) -> bool:
        return self.mode is not None and self.mode.checkpointed

    @property
    def cuts(self) -> bool | None:
        return None if self.mode is None else self.mode.cuts

    def __exit__(self, *raised) -> bool | None:
        if self.known is None:
            self.needs = Needs(self.mode.norms, self.mode.attention, self.mode.reads or self.mode.cuts)
        return self.stack.__exit__(*raised)


@contextmanager
def exactly() -> Iterator[Contexts]:
    """All of them, also as a decorator."""
    with Contexts() as contexts:
        yield contexts


def tracked(tensor: torch.Tensor) -> torch.Tensor:
    """As one that autograd takes: those made in inference mode it does not."""
    return tensor.clone() if tensor.is_inference() else tensor
