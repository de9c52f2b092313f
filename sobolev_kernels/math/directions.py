"""Random directions: where the tangents start from, drawn by a counter-based generator.

The generator is Philox-4x32-10 (Salmon et al., SC 2011) with the key (seed) and the counter (sample, direction, block
of four columns, offset), so nothing is stored and every backend draws the same integers. Samples are numbered from that
of a batch's first one, which lies with the offset in one number, `place`: in its upper half. Each distribution is one
function of those integers; `csrc/cpu/directions.h` has the same functions for a SIMD register.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

MASK32 = 0xFFFFFFFF


def multiply_high_low(constant: int, word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The upper and lower 32 bits of constant * word, both below 2^32, in int64."""
    low16 = constant * (word & 0xFFFF)
    high16 = constant * (word >> 16) + (low16 >> 16)
    return high16 >> 16, ((high16 & 0xFFFF) << 16) | (low16 & 0xFFFF)


def philox(counter: list[torch.Tensor], seed: int | torch.Tensor) -> torch.Tensor:
    """Ten rounds of Philox-4x32 on four broadcastable int64 words below 2^32; returns [..., 4]."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    key0, key1 = seed & MASK32, (seed >> 32) & MASK32
    for _ in range(10):
        high0, low0 = multiply_high_low(0xD2511F53, c0)
        high2, low2 = multiply_high_low(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high2 ^ c1 ^ key0, low2, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + 0x9E3779B9) & MASK32, (key1 + 0xBB67AE85) & MASK32
    return torch.stack((c0, c1, c2, c3), dim=-1)


def in_memory_of_device(seed: torch.Tensor) -> bool:
    """Whether a seed is no number that the host knows without waiting."""
    return not seed.is_cpu


def told(seed: torch.Tensor | None) -> tuple[int, ...]:
    """A seed as kernels are told it, (key, place), or (0, 0, its address) if only the device knows it."""
    if seed is None:
        return 0, 0
    if in_memory_of_device(seed):
        return 0, 0, seed.data_ptr()
    return tuple(seed.tolist())


def place_of(offset: int, first: int) -> int:
    """An offset and the number of a batch's first sample in one number."""
    return offset & MASK32 | first << 32


def words(
    seed: int | torch.Tensor, place: int | torch.Tensor, P: int, N: int, D: int, shared: bool, device: torch.device,
    samples: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The integers behind the directions: [P, N, ceil(D / 4) * 4], int64 below 2^32.

    Of N samples in order, or of those with the numbers `samples`, int64 [N].
    """
    arange = lambda n: torch.arange(n, dtype=torch.int64, device=device)  # noqa: E731
    if samples is None:
        sample = arange(N) + torch.as_tensor(place >> 32, dtype=torch.int64, device=device)
    else:
        sample = samples.to(device)
    sample = (sample & MASK32) * (not shared)
    blocks = (D + 3) // 4
    last = torch.as_tensor(place & MASK32, dtype=torch.int64, device=device)
    w = philox([sample[None, :, None], arange(P)[:, None, None], arange(blocks), last], seed)
    return w.reshape(P, N, 4 * blocks)


def uniform(w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The upper 23 bits as the middle of one of 2^23 intervals of (0, 1): exact in float32."""
    return ((w >> 9).to(dtype) + 0.5) * 2.0**-23


def normal(w: torch.Tensor, D: int, dtype: torch.dtype) -> torch.Tensor:
    """Standard normals by Box and Muller, two from each pair of words."""
    u = uniform(w, dtype).unflatten(-1, (-1, 2))
    radius = torch.sqrt(-2.0 * torch.log(u[..., 0]))
    angle = 2.0 * math.pi * (u[..., 1] - 0.5)
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).flatten(-2)[..., :D]


def sphere(w: torch.Tensor, D: int, dtype: torch.dtype) -> torch.Tensor:
    """Uniform on the unit sphere."""
    v = normal(w, D, dtype)
    return v / v.square().sum(-1, keepdim=True).sqrt()


def centred(w: torch.Tensor, D: int, dtype: torch.dtype) -> torch.Tensor:
    """Uniform on the unit vectors whose numbers have the sum 0."""
    return centred_of(normal(w, D, dtype))


def centred_of(v: torch.Tensor) -> torch.Tensor:
    """The same, from normals; centred twice because of rounding, large beside what almost equal numbers differ by."""
    v = v - v.mean(-1, keepdim=True)
    v = v / v.square().sum(-1, keepdim=True).sqrt()
    return v - v.mean(-1, keepdim=True)


def rademacher(w: torch.Tensor, D: int, dtype: torch.dtype) -> torch.Tensor:
    """Independent signs, from the top bit."""
    return ((w[..., :D] >> 31) * 2 - 1).to(dtype)


def coordinate(w: torch.Tensor, D: int, dtype: torch.dtype) -> torch.Tensor:
    """One-hot, at a uniformly drawn column."""
    column = (w[..., 0] * D) >> 32
    return torch.nn.functional.one_hot(column, D).to(dtype)


def orthonormal(w: torch.Tensor, D: int, dtype: torch.dtype) -> torch.Tensor:
    """Uniform orthonormal frames: Gram and Schmidt on normals, twice because of rounding. Needs P <= D."""
    frame: list[torch.Tensor] = []
    for v in normal(w, D, dtype):
        for _ in range(2):
            v = v / v.square().sum(-1, keepdim=True).sqrt()
            for e in frame:
                v = v - (e * v).sum(-1, keepdim=True) * e
        frame.append(v / v.square().sum(-1, keepdim=True).sqrt())
    return torch.stack(frame) if frame else normal(w, D, dtype)


def basis(w: torch.Tensor, D: int, dtype: torch.dtype) -> torch.Tensor:
    """All the unit vectors in order, the same for every sample; P is D."""
    return torch.eye(D, dtype=dtype, device=w.device)[:, None, :].expand(D, w.shape[1], D)


@dataclass(frozen=True)
class Distribution:
    """A row: how words [P, N, 4 ceil(D/4)] become directions [P, N, D].

    Whether E[v vᵀ] is I/D (of `unit_length`) or I; whether the directions of a sample depend on each other; how many
    FLOPs of a multiply take as long as one number takes to draw (two cores of an EPYC with AVX-512,
    `python -m bench --planner`); whether the kernels draw it themselves: if not, they are given what is drawn here; and
    whether it takes any words: if not, it is handed none, [P, N, 0].
    """

    draw: Callable[[torch.Tensor, int, torch.dtype], torch.Tensor]
    unit_length: bool
    dependent: bool = False
    cost: int = 20
    in_kernels: bool = False
    random: bool = True


# Those in kernels are drawn in csrc/cpu/directions.h, csrc/cuda/philox.cuh and backends/triton/draws.py too.
DISTRIBUTIONS = {
    "sphere": Distribution(sphere, unit_length=True, cost=180, in_kernels=True),
    "normal": Distribution(normal, unit_length=False, cost=180, in_kernels=True),
    "rademacher": Distribution(rademacher, unit_length=False, cost=100, in_kernels=True),
    "coordinate": Distribution(coordinate, unit_length=True, cost=40, in_kernels=True),
    "orthonormal": Distribution(orthonormal, unit_length=True, dependent=True, cost=360, in_kernels=True),
    "basis": Distribution(basis, unit_length=True, in_kernels=True, random=False),
}
# Of cotangents alone, by `Cotangents.sphere(centred=True)`, of D >= 2 numbers
CENTRED = "centred"
ROWS = DISTRIBUTIONS | {CENTRED: Distribution(centred, unit_length=True, cost=180)}
GIVEN = "given"
IN_KERNELS = (*(name for name, row in DISTRIBUTIONS.items() if row.in_kernels), GIVEN)


def is_dependent(distribution: str) -> bool:
    return distribution != GIVEN and ROWS[distribution].dependent


def unbiased_magnitude(distribution: str, D: int) -> float:
    """What to multiply a direction by so that E[v vᵀ] = I, and so E[|J v|²] = |J|² (Frobenius); of centred ones I less
    what is the same in all D numbers."""
    return math.sqrt(D - (distribution == CENTRED)) if ROWS[distribution].unit_length else 1.0


def draw(
    distribution: str, seed: int | torch.Tensor, place: int | torch.Tensor, P: int, N: int, D: int, shared: bool,
    magnitude: float, dtype: torch.dtype, device: torch.device, samples: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Directions [P, N, D] in plain PyTorch; a seed that only the device knows is two scalars there."""
    row = ROWS[distribution]
    w = words(seed, place, P, N, D if row.random else 0, shared, device, samples)
    return row.draw(w, D, dtype) * magnitude
