"""Students that are no modules of the table, and functions whose backward says something else."""

from __future__ import annotations

import torch
from torch import nn


class Call(nn.Module):
    """A module of a function of x and of modules, so that nothing is recognised."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.parts)


class Counting(nn.Module):
    """A module behind another, which counts its calls in a buffer."""

    def __init__(self, module, after):
        super().__init__()
        self.module, self.after = module, after
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        return self.after(self.module(x))


class Straight(torch.autograd.Function):
    """Rounded; of which the backward says 1."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


class Reversed(torch.autograd.Function):
    """Nothing; of which the backward says -1."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, g):
        return -g
