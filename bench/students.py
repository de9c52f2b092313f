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
            y, dy = layer_norm(norm, h, d)
            z, dz = gelu(wide(y), dy @ wide.weight.T)
            h, d = h + narrow(z), d + dz @ narrow.weight.T
        return self.last(h), d @ self.last.weight.T


class Transformer(nn.Module):
    D = 32

    def __init__(self, O: int, norm_first: bool = True):
        super().__init__()
        self.embed, self.place, self.last = nn.Linear(4, 32), nn.Parameter(torch.randn(8, 32)), nn.Linear(32, O)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.encoder(self.embed(x.unflatten(-1, (8, 4))) + self.place).mean(1))

    def streams(self, x: torch.Tensor, v: torch.Tensor) -> Streams:
        h, d = self.embed(x.unflatten(-1, (8, 4))) + self.place, v.unflatten(-1, (8, 4)) @ self.embed.weight.T
        for layer in self.encoder.layers:
            for norm, block in (layer.norm1, attention), (layer.norm2, feed_forward):
                if layer.norm_first:
                    y, dy = block(layer, *layer_norm(norm, h, d))
                    h, d = h + y, d + dy
                else:
                    y, dy = block(layer, h, d)
                    h, d = layer_norm(norm, h + y, d + dy)
        return self.last(h.mean(1)), d.mean(2) @ self.last.weight.T


class PostNorm(Transformer):
    def __init__(self, O: int):
        super().__init__(O, norm_first=False)


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


class ResNet(nn.Module):
    """Two residual blocks of images, batch norm in eval."""

    D = 64

    def __init__(self, O: int):
        super().__init__()
        of_block = lambda: [convolution(8), nn.BatchNorm2d(8), nn.SiLU(), convolution(8), nn.BatchNorm2d(8)]  # noqa: E731
        self.first, self.last = convolution(1), nn.Linear(8, O)
        self.blocks = nn.ModuleList(nn.Sequential(*of_block()) for _ in range(2))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x.view(-1, 1, 8, 8))
        for block in self.blocks:
            h = F.silu(h + block(h))
        return self.last(h.mean((2, 3)))

    def streams(self, x: torch.Tensor, v: torch.Tensor) -> Streams:
        h, d = self.first(x.view(-1, 1, 8, 8)), self.first(v.reshape(-1, 1, 8, 8))
        for one, its_norm, _, two, norm in self.blocks:
            y, dy = silu(its_norm(one(h)), one(d) * scale_of(its_norm))
            h, d = silu(h + norm(two(y)), d + two(dy) * scale_of(norm))
        return self.last(h.mean((2, 3))), d.mean((2, 3)).unflatten(0, (len(v), -1)) @ self.last.weight.T


class Recurrent(nn.Module):
    """A GRU over eight steps."""

    D = 32

    def __init__(self, O: int):
        super().__init__()
        self.gru, self.last = nn.GRU(4, 32, batch_first=True), nn.Linear(32, O)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.gru(x.unflatten(-1, (8, 4)))[0][:, -1])

    def streams(self, x: torch.Tensor, v: torch.Tensor) -> Streams:
        w, u, b, c = self.gru.parameters()
        gates, moved = F.linear(x.unflatten(-1, (8, 4)), w, b), v.unflatten(-1, (8, 4)) @ w.T
        h, d = x.new_zeros(len(x), 32), v.new_zeros(*v.shape[:2], 32)
        for i in range(8):
            (r, z, n), (dr, dz, dn) = gates[:, i].chunk(3, -1), moved[:, :, i].chunk(3, -1)
            (s, t, m), (ds, dt, dm) = F.linear(h, u, c).chunk(3, -1), (d @ u.T).chunk(3, -1)
            (r, dr), (z, dz) = sigmoid(r + s, dr + ds), sigmoid(z + t, dz + dt)
            n, dn = tanh(n + r * m, dn + dr * m + r * dm)
            h, d = n + z * (h - n), dn + dz * (h - n) + z * (d - dn)
        return self.last(h), d @ self.last.weight.T


class UNet(nn.Module):
    """Images halved and doubled again, beside a skip."""

    D = 64

    def __init__(self, O: int):
        super().__init__()
        self.first, self.down = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.middle, self.up = nn.Conv2d(16, 16, 3, padding=1), nn.ConvTranspose2d(16, 8, 2, 2)
        self.join, self.last = nn.Conv2d(16, 8, 3, padding=1), nn.Linear(8, O)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = torch.tanh(self.first(x.view(-1, 1, 8, 8)))
        h = self.up(torch.tanh(self.middle(torch.tanh(self.down(skip)))))
        return self.last(torch.tanh(self.join(torch.cat([skip, h], 1))).mean((2, 3)))

    def streams(self, x: torch.Tensor, v: torch.Tensor) -> Streams:
        first = F.conv2d(v.reshape(-1, 1, 8, 8), self.first.weight, padding=1)
        skip, moved = tanh(self.first(x.view(-1, 1, 8, 8)), first)
        h, d = tanh(self.down(skip), F.conv2d(moved, self.down.weight, None, 2, 1))
        h, d = tanh(self.middle(h), F.conv2d(d, self.middle.weight, padding=1))
        h, d = self.up(h), F.conv_transpose2d(d, self.up.weight, None, 2)
        d = F.conv2d(torch.cat([moved, d], 1), self.join.weight, padding=1)
        h, d = tanh(self.join(torch.cat([skip, h], 1)), d)
        return self.last(h.mean((2, 3))), d.mean((2, 3)).unflatten(0, (len(v), -1)) @ self.last.weight.T


def convolution(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, 8, 3, padding=1, bias=False)


def along(slope: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Tangents times the slopes of values; they are as many samples, or have a dimension more."""
    return (slope * d.unflatten(0, (-1, len(slope)))).flatten(0, 1) if d.dim() == slope.dim() else slope * d


def tanh(z: torch.Tensor, d: torch.Tensor) -> Streams:
    h = torch.tanh(z)
    return h, along(1 - h * h, d)


def sigmoid(z: torch.Tensor, d: torch.Tensor) -> Streams:
    h = torch.sigmoid(z)
    return h, along(h * (1 - h), d)


def silu(z: torch.Tensor, d: torch.Tensor) -> Streams:
    s = torch.sigmoid(z)
    return z * s, along(s * (1 + z * (1 - s)), d)


def gelu(z: torch.Tensor, d: torch.Tensor) -> Streams:
    cdf, pdf = 0.5 * (1 + torch.erf(z * 0.5**0.5)), torch.exp(-0.5 * z * z) * 0.3989422804014327
    return z * cdf, along(cdf + z * pdf, d)


def layer_norm(norm: nn.LayerNorm, h: torch.Tensor, d: torch.Tensor) -> Streams:
    centred, moved = h - h.mean(-1, keepdim=True), d - d.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    y = centred * scale
    return y * norm.weight + norm.bias, scale * (moved - y * (y * moved).mean(-1, keepdim=True)) * norm.weight


def scale_of(norm: nn.BatchNorm2d) -> torch.Tensor:
    return (norm.weight * (norm.running_var + norm.eps).rsqrt())[:, None, None]


def attention(layer: nn.TransformerEncoderLayer, h: torch.Tensor, d: torch.Tensor) -> Streams:
    own = layer.self_attn
    heads = lambda t: t.unflatten(-1, (3, own.num_heads, -1)).movedim(-3, 0).transpose(-3, -2)  # noqa: E731
    (q, k, v), (dq, dk, dv) = heads(F.linear(h, own.in_proj_weight, own.in_proj_bias)), heads(d @ own.in_proj_weight.T)
    q, dq = (t * own.head_dim**-0.5 for t in (q, dq))
    p, moved = torch.softmax(q @ k.mT, -1), dq @ k.mT + q @ dk.mT
    dp = p * (moved - (p * moved).sum(-1, keepdim=True))
    y, dy = ((t.transpose(-3, -2).flatten(-2)) for t in (p @ v, dp @ v + p @ dv))
    return own.out_proj(y), dy @ own.out_proj.weight.T


def feed_forward(layer: nn.TransformerEncoderLayer, h: torch.Tensor, d: torch.Tensor) -> Streams:
    z, dz = gelu(layer.linear1(h), d @ layer.linear1.weight.T)
    return layer.linear2(z), dz @ layer.linear2.weight.T


STUDENTS = {
    "LeNet": LeNet, "residual MLP": ResidualMLP, "transformer": Transformer, "transformer, norm last": PostNorm,
    "Fourier": Fourier, "gated": Gated, "ResNet": ResNet, "GRU": Recurrent, "U-net": UNet,
}  # fmt: skip
NORMED = ResidualMLP, Transformer  # whose gradients are wrong by PyTorch's layer norm (pytorch#196700)
