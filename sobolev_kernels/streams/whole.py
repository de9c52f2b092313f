"""An MLP in any dress is an MLP: a student that is none by its modules may be one by what its forward does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import dropout
from torch.nn.modules.lazy import LazyModuleMixin

from ..autocast import casting
from ..backends.exact import Eagerly, graphs
from ..boundary import PLAIN, is_sound
from ..dispatch import requested
from ..held import Held
from ..modules import KINDS
from ..parts import draws, modules_of
from ..paths import Known, known_of, unseen
from ..problem import Operands, Problem
from ..scaled import Scaled, fold_of
from ..settings import Settings
from ..student import Student
from .backward_hooks import WITHIN, looks_at_ends
from .chain import RULES, Chain, student_of
from .checkpoints import FLOWS
from .ends import Hook, has_ends, looked_at
from .flowing import Run, attach, is_of_checkpoint

# Modules of torch.nn that may be parts of a chain. Of others it is known without a run that they are none.
PARTS = {nn.Module, nn.Linear, nn.Flatten, nn.Identity, *KINDS}
PARTS |= {kind for kind in vars(dropout).values() if isinstance(kind, type)}
AS_IT_IS = "streams", "reference"  # backends that run a module as it is
HARMLESS = "torch.nn.modules.container", "torch.nn.modules.loss"


class Followed(NamedTuple):
    """A student whose whole forward was followed, and what the run of it may have changed, as that was before."""

    student: Student
    held: Held | None  # None of one that was not run
    hooks: list[Callable]  # to be called before gradients come to the weights
    inputs: torch.Tensor | None = None  # what the student is of, where it is not what the forward was given
    looking: Sequence[Hook] = ()  # of its outputs

    def inputs_of(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.inputs is None else self.inputs

    def restore(self) -> None:
        if self.held is not None:
            self.held.restore()

    def serves(self, result: str, settings: Settings) -> bool:
        """Whether a call has what its hooks look at; else what its run has changed is put back."""
        if self.looking and not has_ends(result, settings):
            self.restore()
            return False
        return True

    def attach(
        self, results: tuple[torch.Tensor, ...], problem: Problem, operands: Callable[[], Operands]
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        """The results, with all hooks."""
        attach(self.hooks, results)
        return looked_at(self.looking, results, problem, operands()) if self.looking else results


def followed(function: object, x: torch.Tensor) -> Followed | None:
    """The multi-layer perceptron that a function of x is, if its whole forward is one chain of layers.

    Where it is something else, nothing is left of the run, and it is not run again until something of it is another.
    """
    if isinstance(function, torch.jit.ScriptFunction) or type(x) not in PLAIN or is_traced(x):
        return None
    modules = list(modules_of(function))
    if not all(map(may_be_part, modules)):
        return None
    known = known_of(function, x)
    parameters = [p for module in modules for p in module._parameters.values() if p is not None]
    tensors = (casting(x.device.type), *[(p.shape, p.dtype, p.device) for p in parameters])
    if known.tensors != tensors:
        known.no_chain, known.tensors = "", tensors
    if known.no_chain:
        return None
    if not known.is_chain:
        with unseen():
            first = run_on_chain(function, x, modules, known)
        if first is None:
            return None
        first.restore()
    return run_on_chain(function, x, modules, known)


def followed_again(function: object, x: torch.Tensor, backend: str | None, known: Known) -> Followed | None:
    """The same of one that was a chain at a call before, where nobody traces the call."""
    if not known.is_chain or requested(backend) in AS_IT_IS:
        return None
    return run_on_chain(function, x, list(modules_of(function)), known)


def scaled_again(function: object, x: torch.Tensor, backend: str | None) -> Followed | None:
    """What a `Scaled` is, of which no forward need be run."""
    if type(function) is not Scaled or requested(backend) in AS_IT_IS:
        return None
    fold = fold_of(function, x, graph=True)
    return None if fold is None else Followed(fold.student, None, [], fold.inputs)


def run_on_chain(function: object, x: torch.Tensor, modules: list[nn.Module], known: Known) -> Followed | None:
    capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()
    held = Held(modules, [] if capturing else [x.device])
    run = Run(RULES, x.dtype, x.device, x.requires_grad, x=x)
    found = chain_of(function, x, run)
    was, known.is_chain = known.is_chain, not isinstance(found, str)
    known.no_chain = "" if known.is_chain else found
    if was and not known.is_chain:
        known.lose()
    if known.is_chain:
        inputs, looking = None if run.x is x else run.x, [(hook, sizes) for hook, _, sizes in run.looking]
        return Followed(found, held, run.hooks, inputs, looking)
    held.restore()
    return None


def is_traced(x: torch.Tensor) -> bool:
    """Whether someone follows the call who has to see the function's own operations."""
    if torch.compiler.is_compiling():
        return True
    functorch, dispatch = torch._C._are_functorch_transforms_active(), torch._C._len_torch_dispatch_stack() > 0
    return functorch or dispatch or forward_ad._current_level >= 0


def may_be_part(module: nn.Module) -> bool:
    kind = type(module)
    if isinstance(module, (torch.jit.ScriptModule, LazyModuleMixin)) or (module.training and draws(module)):
        return False
    home = kind.__module__
    return kind in PARTS or home in HARMLESS or not home.startswith("torch.nn.modules.")


def chain_of(function: object, x: torch.Tensor, run: Run) -> Student | str:
    """The student that a function is at x, or why it is no chain of layers."""
    try:
        with graphs(), Eagerly(), FLOWS:
            result = function(Chain.make(run, x.shape))
            if isinstance(result, Chain) and result.run is run and result.layers and not run.reason:
                if not looks_at_ends(result):
                    return WITHIN
                student = student_of(result)
            else:
                return run.reason or "what it gives is no chain of linear layers"
    except Exception as error:  # whatever it is, the function is run as it is, and says so itself
        if is_of_checkpoint(error):
            raise
        return run.reason or f"{type(error).__name__} in it"
    del result
    if run.is_held():
        return "something keeps what flows through it"
    return student if all(map(is_sound, student.parameters)) else "a weight has no memory when it is over"
