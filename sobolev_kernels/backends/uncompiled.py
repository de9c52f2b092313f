"""Where torch.compile breaks its graph: imported when it does, since the decorator imports the whole compiler."""

from __future__ import annotations

from collections.abc import Callable

import torch


@torch.compiler.disable(reason="the reference differentiates by autograd, which torch.compile cannot look into")
def uncompiled(function: Callable, *arguments):
    return function(*arguments)
