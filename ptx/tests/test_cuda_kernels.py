"""nvcc's sm_80 PTX executed against torch, as it is and broken on purpose."""

import functools

import pytest
import torch

from ptx import load, missing
from ptx.compile import compile_cuda
from ptx.compile import missing as missing_tool
from ptx.mutate import barriers, mutants, waits

reason = missing() or missing_tool("nvcc")
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

SCHEDULES = ["round_robin", "ahead", "reverse", "random:1"]

SOURCE = r"""
#include <cstdint>
#include <cuda_bf16.h>

__constant__ float scale[2] = {2.0f, 0.5f};

__device__ __noinline__ float helper(float x, int k) { return sinf(x) * k + powf(fabsf(x), 1.5f); }

// Mathematics, a called function, a local array that is indexed at run time, a switch.
extern "C" __global__ void functions(const float* x, float* y, double* z, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float kept[8];
    for (int j = 0; j < 8; j++) kept[j] = x[(i + j) % n] / 3.3f;
    float a = x[i], r = kept[(i * 5) & 7] + expf(a) + tanhf(a) + erff(a);
    r += sqrtf(fabsf(a)) + logf(fabsf(a)) + helper(a, n);
    switch (i % 6) {
        case 0: r += 1; break;
        case 1: r *= scale[0]; break;
        case 2: r -= a; break;
        case 3: r = fmaxf(r, 0.f); break;
        case 4: r *= scale[1]; break;
        case 5: r = -r; break;
    }
    y[i] = r;
    double q = (double)(i / 7) + (double)((uint64_t)i * 1000003ull % 97ull);
    z[i] = exp((double)a) / 3.0 + __bfloat162float(__float2bfloat16(a)) + q;
}

extern "C" __global__ void sine(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = sinf(x[i]);
}

// A tiled product: 16 x 16 threads, dynamic and static shared memory.
extern "C" __global__ void tiled(const float* a, const float* b, float* c, int m, int n, int k) {
    __shared__ float left[16][17];
    extern __shared__ float right[];
    int r = blockIdx.y * 16 + threadIdx.y, q = blockIdx.x * 16 + threadIdx.x;
    float sum = 0;
    for (int s = 0; s < k; s += 16) {
        left[threadIdx.y][threadIdx.x] = r < m && s + threadIdx.x < k ? a[r * k + s + threadIdx.x] : 0;
        right[threadIdx.y * 16 + threadIdx.x] = s + threadIdx.y < k && q < n ? b[(s + threadIdx.y) * n + q] : 0;
        __syncthreads();
        for (int j = 0; j < 16; j++) sum = fmaf(left[threadIdx.y][j], right[j * 16 + threadIdx.x], sum);
        __syncthreads();
    }
    if (r < m && q < n) c[r * n + q] = sum;
}

// Warps by shuffles, the block through shared memory, blocks by an atomic.
extern "C" __global__ void reduced(const float* x, float* total, int* large, int n) {
    __shared__ float part[32];
    float s = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) s += x[i];
    for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = s;
    int some = __syncthreads_count(s > 1.0f);
    if (threadIdx.x < 32) {
        s = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0;
        for (int o = 16; o; o >>= 1) s += __shfl_down_sync(~0u, s, o);
        if (threadIdx.x == 0) atomicAdd(total, s), atomicMax(large, some);
    }
}

// bf16 tensor cores fed by cp.async and ldmatrix, two stages: C [64, 32] += A [64, K] B [K, 32], 4 warps.
using bf16 = __nv_bfloat16;
__device__ uint32_t address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ void copy(bf16* to, const bf16* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address(to)), "l"(from));
}
extern "C" __global__ void __launch_bounds__(128) tensor(const bf16* a, const bf16* b, float* c, int k) {
    __shared__ __align__(16) bf16 left[2][64][40], right[2][32][40];
    int t = threadIdx.x, w = t / 32, l = t % 32;
    auto fetch = [&](int stage, int s) {
        for (int i = t; i < 64 * 4; i += 128) copy(&left[stage][i / 4][i % 4 * 8], a + i / 4 * k + s + i % 4 * 8);
        for (int i = t; i < 32 * 4; i += 128) copy(&right[stage][i / 4][i % 4 * 8], b + (s + i / 4) * 32 + i % 4 * 8);
        asm volatile("cp.async.commit_group;");
    };
    float d[4][4] = {};
    fetch(0, 0);
    for (int s = 0; s < k; s += 32) {
        int stage = s / 32 & 1;
        if (s + 32 < k) fetch(stage ^ 1, s + 32);
        else asm volatile("cp.async.commit_group;");
        asm volatile("cp.async.wait_group 1;");
        __syncthreads();
        for (int j = 0; j < 32; j += 16) {
            uint32_t x[4], y[2];
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                         : "r"(address(&left[stage][w * 16 + l % 16][j + l / 16 * 8])));
            for (int q = 0; q < 4; q++) {
                asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                             : "=r"(y[0]), "=r"(y[1]) : "r"(address(&right[stage][j + l % 16][q * 8])));
                asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                             "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                             : "+f"(d[q][0]), "+f"(d[q][1]), "+f"(d[q][2]), "+f"(d[q][3])
                             : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
            }
        }
        __syncthreads();
    }
    for (int q = 0; q < 4; q++)
        for (int i = 0; i < 4; i++) c[(w * 16 + l / 4 + 8 * (i / 2)) * 32 + q * 8 + l % 4 * 2 + i % 2] = d[q][i];
}
"""


@functools.cache
def text() -> str:
    return compile_cuda(SOURCE)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_functions(schedule):
    n = 150
    x = torch.linspace(-9, 9, n) + 0.01
    y, z = torch.full((n,), torch.nan), torch.full((n,), torch.nan, dtype=torch.float64)
    load(text()).launch("functions", 2, 128, [x, y, z, n], schedule=schedule)
    i, d = torch.arange(n), x.double()
    kept = torch.stack([(x[(i + j) % n] / 3.3) for j in range(8)])[(i * 5) & 7, i].double()
    r = kept + d.exp() + d.tanh() + d.abs().sqrt() + d.sin() * n + d.abs() ** 1.5 + d.abs().log() + d.erf()
    cases = [r + 1, r * 2, r - d, r.clamp(min=0), r / 2, -r]
    expected = torch.stack(cases)[i % 6, i]
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=2e-4)
    rest = x.to(torch.bfloat16).double() + (i // 7).double() + (i * 1000003 % 97).double()
    torch.testing.assert_close(z, d.exp() / 3 + rest)


def test_the_slow_path_of_a_sine():
    """Large arguments are reduced with a table of constants and a local array."""
    x = torch.logspace(0, 7, 150)
    y = torch.full_like(x, torch.nan)
    load(text()).launch("sine", 2, 128, [x, y, 150])
    torch.testing.assert_close(y.double(), x.double().sin(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tiled_product(schedule):
    m, n, k = 40, 24, 50
    a, b, c = torch.randn(m, k), torch.randn(k, n), torch.full((m, n), torch.nan)
    result = load(text()).launch("tiled", (2, 3), (16, 16), [a, b, c, m, n, k], shared=16 * 16 * 4, schedule=schedule)
    torch.testing.assert_close(c, a @ b, rtol=1e-4, atol=1e-4)
    assert result.unique_bytes_read == 4 * (m * k + k * n) and result.bytes_written == 4 * m * n
    assert any(str(line.location).startswith("kernel.cu:") for line in result.lines)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_reduction(schedule):
    x, total, large = torch.randn(1000), torch.zeros(1), torch.zeros(1, dtype=torch.int32)
    load(text()).launch("reduced", 3, 128, [x, total, large, 1000], schedule=schedule)
    torch.testing.assert_close(total[0], x.sum(), rtol=1e-4, atol=1e-4)
    assert 0 < int(large) <= 128 and int(large) % 32 == 0


def run_tensor(ptx, schedule="round_robin", findings="raise"):
    k = 128
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(s, generator=generator).to(torch.bfloat16) for s in ((64, k), (k, 32)))
    c = torch.full((64, 32), torch.nan)
    result = load(ptx).launch("tensor", 1, 128, [a, b, c, k], schedule=schedule, findings=findings)
    return result, c, a.double() @ b.double()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tensor_cores(schedule):
    result, c, expected = run_tensor(text(), schedule)
    assert (c - expected).abs().max() < 3e-5
    assert result.count("mma.") * 2 * 16 * 8 * 16 == 2 * 64 * 32 * 128
    conflicts = {kind: sum(line.bank_conflicts for line in result.lines if line.opcode.startswith(kind))
                 for kind in ("ldmatrix", "cp.async")}  # fmt: skip
    # The padding of rows to 40 is for ldmatrix; a quarter of a warp copies two rows, whose banks overlap.
    assert conflicts["ldmatrix"] == 0 < conflicts["cp.async"]


def test_mutants_are_found():
    """All barriers and waits of the tensor-core kernel and of the tiled product."""
    tried = 0
    start, end = text().index(".entry tensor"), text().index("\n}", text().index(".entry tensor"))
    for kind in (barriers, waits):
        for name, mutant in kind(text()):
            line = int(name.rsplit(" ", 1)[1][:-1])
            if not text()[:start].count("\n") < line <= text()[:end].count("\n") + 1:
                continue
            tried += 1
            assert run_tensor(mutant, findings="return")[0].findings, name
    assert tried >= 3


def test_mutants_of_the_tiled_product_are_found():
    for name, mutant in mutants(only("tiled")):
        m, n, k = 40, 24, 50
        a, b, c = torch.randn(m, k), torch.randn(k, n), torch.full((m, n), torch.nan)
        result = load(mutant).launch("tiled", (2, 3), (16, 16), [a, b, c, m, n, k], shared=1024, findings="return")
        assert result.findings, name


def only(kernel):
    """The PTX with the other kernels' bodies left out."""
    head, *entries = text().split(".visible .entry ")
    return head + "".join(".visible .entry " + e for e in entries if e.startswith(kernel + "("))
