"""Students that are no MLPs, of `python -m bench --any`; each with its tangents derived by hand, where that is done."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

Streams = tuple[torch.Tensor, torch.Tensor]  # values [N, O] and tangents [P, N, O]


class LeNet(nn.Module):
    D = 64

    def __init__(self, O: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 16, 3)
        self.head = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, O))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.avg_pool2d(torch.tanh(self.first(x.view(-1, 1, 8, 8))), 2)
        return self.head(F.avg_pool2d(torch.tanh(self.second(h)), 2).flatten(1))

    def streams(self, x: torch.Tensor, v: torch.Tensor) -> Streams:
        P = len(v)
        first = lambda h: F.conv2d(h, self.first.weight, padding=1)  # noqa: E731
        h, d = tanh(self.first(x.view(-1, 1, 8, 8)), first(v.reshape(-1, 1, 8, 8)))
        d = F.conv2d(F.avg_pool2d(d, 2), self.second.weight)
        h, d = tanh(self.second(F.avg_pool2d(h, 2)), d)
        h, d = F.avg_pool2d(h, 2).flatten(1), F.avg_pool2d(d, 2).flatten(1).unflatten(0, (P, -1))
        h, d = tanh(self.head[0](h), d @ self.head[0].weight.T)
        return self.head[2](h), d @ self.head[2].weight.T


class ResidualMLP(nn.Module):
    D = 16

    def __init__(self, O: int):
        super().__init__()
        self.first, self.last = nn.Linear(self.D, 64), nn.Linear(64, O)
        of_block = lambda: nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))  # noqa: E731
        self.blocks = nn.ModuleList(of_block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)

    def streams(self, x: torch.Tensor, v: torch.Tensor) -> Streams:
        h, d = self.first(x), v @ self.first.weight.T
        for norm, wide, _, narrow in self.blocks:
            centred, moved = h - h.mean(-1, keepdim=True), d - d.mean(-1, keepdim=True)
            scale = (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
            y = centred * scale
            dy = scale * (moved - y * (y * moved).mean(-1, keepdim=True))
            z, dz = wide(y * norm.weight + norm.bias), (dy * norm.weight) @ wide.weight.T
            cdf, pdf = 0.5 * (1 + torch.erf(z * 0.5**0.5)), torch.exp(-0.5 * z * z) * 0.3989422804014327
            h, d = h + narrow(z * cdf), d + (dz * (cdf + z * pdf)) @ narrow.weight.T
        return self.last(h), d @ self.last.weight.T


class Transformer(nn.Module):
    D = 32

    def __init__(self, O: int):
        super().__init__()
        self.embed, self.place, self.last = nn.Linear(4, 32), nn.Parameter(torch.randn(8, 32)), nn.Linear(32, O)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.encoder(self.embed(x.unflatten(-1, (8, 4))) + self.place).mean(1))


class Fourier(nn.Module):
    D = 4

    def __init__(self, O: int):
        super().__init__()
        self.register_buffer("waves", torch.randn(self.D, 32))
        layers = nn.Linear(64, 128), nn.Softplus(), nn.Linear(128, 128), nn.Softplus(), nn.Linear(128, O)
        self.net = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angles = x @ self.waves
        return self.net(torch.cat([angles.sin(), angles.cos()], -1))

    def streams(self, x: torch.Tensor, v: torch.Tensor) -> Streams:
        angles, d = x @ self.waves, v @ self.waves
        sin, cos = angles.sin(), angles.cos()
        h, d = torch.cat([sin, cos], -1), torch.cat([cos * d, -sin * d], -1)
        for layer in self.net[:-1:2]:
            z, d = layer(h), d @ layer.weight.T
            h, d = F.softplus(z), torch.sigmoid(z) * d
        return self.net[-1](h), d @ self.net[-1].weight.T


class Gated(nn.Module):
    D = 16

    def __init__(self, O: int):
        super().__init__()
        self.a, self.b, self.middle = nn.Linear(self.D, 128), nn.Linear(self.D, 128), nn.Linear(128, 128)
        self.last = nn.Linear(128, O)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.middle(torch.tanh(self.a(x)) * torch.sigmoid(self.b(x)))))

    def streams(self, x: torch.Tensor, v: torch.Tensor) -> Streams:
        (a, da), b = tanh(self.a(x), v @ self.a.weight.T), torch.sigmoid(self.b(x))
        d = da * b + a * (b * (1 - b)) * (v @ self.b.weight.T)
        h, d = tanh(self.middle(a * b), d @ self.middle.weight.T)
        return self.last(h), d @ self.last.weight.T


def tanh(z: torch.Tensor, d: torch.Tensor) -> Streams:
    """Of values, and of tangents that are as many samples, or have a dimension more."""
    h = torch.tanh(z)
    slope = 1 - h * h
    return h, (slope * d.unflatten(0, (-1, len(z)))).flatten(0, 1) if d.dim() == z.dim() else slope * d


STUDENTS = {"LeNet": LeNet, "residual MLP": ResidualMLP, "transformer": Transformer, "Fourier": Fourier, "gated": Gated}
NORMED = ResidualMLP, Transformer  # whose gradients are wrong by PyTorch's layer norm (pytorch#196700)
