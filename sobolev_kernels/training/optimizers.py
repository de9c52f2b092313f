"""The optimizer of a training, and the step of the usual one without what it finds anew at each step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from torch.optim import Adam, AdamW, Optimizer
from torch.optim import optimizer as everywhere

from ..errors import need

LEARNING_RATE = 1e-3
OPTIMIZERS = "a class of torch.optim, a function of parameters that gives an optimizer, or an optimizer"


def optimizer_of(given: object, lr: float | None, parameters: Sequence[torch.Tensor], more: Sequence[torch.Tensor]):
    """The optimizer of a student's `parameters` and of `more`, those of a rule of weights.

    Raises:
        ValueError, TypeError: it is no optimizer, or does not know these parameters.
    """
    parameters, more = list(parameters), list(more)
    if isinstance(given, Optimizer):
        need(lr is None, "lr", "none beside an optimizer that has its own", lr)
        known = {id(p) for group in given.param_groups for p in group["params"]}
        hint = "optimizer=torch.optim.Adam, the class, is made with them"
        need(known >= set(map(id, parameters)), "optimizer", "one of the student's parameters", given, hint=hint)
        others = [p for p in more if id(p) not in known]
        need(not others or not needs_closure(given), "optimizer", "one of the rule's parameters too", type(given))
        if others:
            given.add_param_group({"params": others})
        return given
    if given is None:
        return adam(parameters + more, LEARNING_RATE if lr is None else lr)
    need(callable(given), "optimizer", OPTIMIZERS, given, TypeError)
    named = {} if lr is None else {"lr": lr}
    made = given(parameters + more, **named)
    need(isinstance(made, Optimizer), "optimizer", OPTIMIZERS, made, TypeError)
    return made


def adam(parameters: Sequence[torch.Tensor], lr: float) -> Adam:
    """Fused, where these parameters can be."""
    device = parameters[0].device.type
    try:
        return Adam(parameters, lr, fused=True, capturable=device == "cuda")
    except RuntimeError:
        return Adam(parameters, lr)


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether a step evaluates the loss itself, as that of L-BFGS."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def has_hooks(optimizer: Optimizer) -> bool:
    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return bool(own or everywhere._global_optimizer_pre_hooks or everywhere._global_optimizer_post_hooks)


class FusedAdam:
    """`step()` of an Adam that is fused and on the CPU, from gradients that come as a list: the same operations on the
    same state, which its `state_dict()` has as ever."""

    def __init__(self, optimizer: Adam, parameters: list[torch.Tensor]):
        self.group, state = optimizer.param_groups[0], optimizer.state
        self.parameters = parameters
        self.averages, self.squares, steps = (
            [state[p][name] for p in parameters] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        self.count = torch.stack(steps)  # of which the steps are parts, so that one operation counts all of them
        self.steps = list(self.count.unbind())
        for parameter, step in zip(parameters, self.steps, strict=True):
            state[parameter]["step"] = step
        decoupled = type(optimizer) is AdamW or self.group.get("decoupled_weight_decay", False)
        self.update: Callable = torch._fused_adamw_ if decoupled else torch._fused_adam_

    @classmethod
    def of(cls, optimizer: Optimizer, parameters: Sequence[torch.Tensor]) -> FusedAdam | None:
        """None of an optimizer that is not so simple, is hooked or is another than that of these parameters, or has
        made no step yet."""
        if type(optimizer) not in (Adam, AdamW) or len(optimizer.param_groups) != 1 or has_hooks(optimizer):
            return None
        group, parameters = optimizer.param_groups[0], list(parameters)
        plain = not (group["amsgrad"] or group["differentiable"] or group["capturable"]) and group["fused"]
        numbers = all(isinstance(group[name], (int, float)) for name in ("lr", "eps", "weight_decay"))
        own = getattr(vars(optimizer).get("step"), "_wrapped_by_lr_sched", "step" not in vars(optimizer))
        if not (plain and numbers and own) or [*map(id, group["params"])] != [*map(id, parameters)]:
            return None
        if len({(p.dtype, p.device) for p in parameters}) != 1 or not parameters[0].is_cpu:
            return None
        if not all("step" in optimizer.state.get(p, ()) for p in parameters):
            return None
        return cls(optimizer, parameters)

    def __call__(self, gradients: list[torch.Tensor]) -> None:
        group = self.group
        beta1, beta2 = group["betas"]
        self.count.add_(1)
        self.update(
            self.parameters, gradients, self.averages, self.squares, [], self.steps, lr=group["lr"], beta1=beta1,
            beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False,
            maximize=group["maximize"], grad_scale=None, found_inf=None,
        )  # fmt: skip
