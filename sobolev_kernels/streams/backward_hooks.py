"""Full backward hooks of modules, and those before them, within a forward that something flows through.

They are hooks of the values: what a module's outputs, and its inputs, have to do with the loss is the same however the
derivatives in it are taken, so that a hook sees what it would see of a loss of values alone, once a backward. What it
gives back would go on along the values and not along the tangents, so it may only look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn
from torch.nn.modules import module as everywhere
from torch.utils.hooks import BackwardHook

from ..errors import NotProvided
from .chain import Chain
from .flowing import name_of, run_of
from .pair import is_pair, value, viewed

WITHIN = "a backward hook of a part of it"


class OfFlowing(BackwardHook):
    """PyTorch's own, of the values of pairs; of a chain, of the student's inputs and outputs."""

    def setup_input_hook(self, arguments: tuple) -> tuple:
        run = run_of(arguments)
        if run is None:
            return super().setup_input_hook(arguments)
        self.look_only()
        if any(map(is_pair, arguments)):
            return self.of_values(super().setup_input_hook, arguments)
        first = arguments[0]
        if len(arguments) > 1 or not isinstance(first, Chain) or first.layers or first.sizes != tuple(run.x.shape):
            run.stop(WITHIN)
        (run.x,) = super().setup_input_hook((run.x,))
        return arguments

    def setup_output_hook(self, result: object) -> object:
        together = result if isinstance(result, tuple) else (result,)
        run = run_of(together)
        if run is None:
            return super().setup_output_hook(result)
        self.look_only()  # also of a module that was called by keywords, whose inputs PyTorch does not see
        if any(map(is_pair, together)):
            after = self.of_values(super().setup_output_hook, together)
            return after if isinstance(result, tuple) else after[0]
        if not isinstance(result, Chain):
            run.stop(WITHIN)
        run.looking.append((super().setup_output_hook, result.layers, result.sizes))
        return result

    def look_only(self) -> None:
        self.user_hooks, self.user_pre_hooks = looking(self.user_hooks), looking(self.user_pre_hooks)

    def of_values(self, setup: Callable, arguments: tuple) -> tuple:
        run_of(arguments).need_graph()
        values = tuple(map(value, arguments))
        after = setup(values)
        if after is values:  # none of them asks for a gradient
            return arguments
        kinds = zip(arguments, after, strict=True)
        parts = [viewed(argument, new, argument.d) if is_pair(argument) else new for argument, new in kinds]
        return tuple(parts) if type(arguments) is tuple else type(arguments)(*parts)


def looks_at_ends(chain: Chain) -> bool:
    """Whether all of a run's hooks are of the whole forward that a chain came of."""
    return all((layers, sizes) == (chain.layers, chain.sizes) for _, layers, sizes in chain.run.looking)


class Looking:
    """A hook that may give back nothing, or what it is given."""

    def __init__(self, hook: Callable):
        self.hook = hook

    def __call__(self, module: nn.Module, *gradients: tuple) -> None:
        tensors = [tensor for each in gradients for tensor in each if tensor is not None]
        versions = [tensor._version for tensor in tensors]
        given = self.hook(module, *gradients)
        same = given is None or all(new is old for new, old in zip(given, gradients[0], strict=False))
        if not same or versions != [tensor._version for tensor in tensors]:
            raise NotProvided(
                f"student: {name_of(self.hook)}, a backward hook of {type(module).__name__} in it, changes a gradient, "
                'and derivatives would be those of something else; let it only look, or say backend="reference"'
            )


def looking(hooks: Sequence[Callable]) -> list[Callable]:
    return [hook if isinstance(hook, Looking) else Looking(hook) for hook in hooks]


BACKWARD_HOOK = {(everywhere.__name__, BackwardHook.__name__): lambda _: OfFlowing}
