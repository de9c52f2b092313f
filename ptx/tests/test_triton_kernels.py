"""Triton's sm_80 PTX executed against torch, as it is and broken on purpose."""

import pytest
import torch

from ptx import PtxFailure, load, missing
from ptx.compile import assemble, compile_triton, machine_instructions
from ptx.compile import missing as missing_tool
from ptx.mutate import barriers, masks, mutants, waits

reason = missing() or missing_tool("triton")
if reason:
    pytest.skip(reason, allow_module_level=True)

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

SCHEDULES = ["round_robin", "ahead", "reverse", "random:1"]
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@triton.jit
def add_kernel(X, Y, Z, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(Z + i, tl.load(X + i, mask=i < n) + tl.load(Y + i, mask=i < n), mask=i < n)


@triton.jit
def matmul_kernel(A, B, C, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):
    m, n, k = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN), tl.arange(0, BK)
    sum = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        a = tl.load(A + m[:, None] * K + (start + k)[None, :], mask=(m < M)[:, None], other=0.0)
        b = tl.load(B + (start + k)[:, None] * N + n[None, :], mask=(n < N)[None, :], other=0.0)
        sum = tl.dot(a, b, sum, input_precision=PRECISION)
    tl.store(C + m[:, None] * N + n[None, :], sum, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def softmax_kernel(X, Y, n, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(X + row * n + column, mask=column < n, other=-float("inf"))
    e = tl.exp(x - tl.max(x, 0))
    tl.store(Y + row * n + column, e / tl.sum(e, 0), mask=column < n)


@triton.jit
def functions_kernel(X, Y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(X + i, mask=i < n, other=1.0)
    y = tl.sin(x) + tl.cos(x) + tl.log(tl.abs(x)) + tl.sqrt(tl.abs(x)) + tl.rsqrt(tl.abs(x)) + tl.erf(x) + tl.floor(x)
    tl.store(Y + i, y + tl.fdiv(1.0, x) + tl.sigmoid(x), mask=i < n)


@triton.jit
def sums_kernel(X, TOTAL, HIGHEST, COUNTS, ROWS, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(X + i, mask=i < n, other=0.0)
    tl.atomic_add(TOTAL, tl.sum(x, 0))
    tl.atomic_max(HIGHEST, tl.max(x, 0))
    tl.atomic_add(COUNTS + (x > 0).to(tl.int32), 1, mask=i < n)
    tl.store(ROWS + i, tl.cumsum(x, 0), mask=i < n)


@triton.jit
def random_kernel(Y, seed, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b, c, d = tl.philox(seed, i, i + 1, i + 2, i + 3)
    tl.store(Y + i, a ^ b ^ c ^ d)


@triton.jit
def layouts_kernel(X, Y, PLACES, S: tl.constexpr, T: tl.constexpr):
    i, j = tl.arange(0, S), tl.arange(0, T)
    x = tl.load(X + i[:, None] * T + j[None, :])
    tl.store(Y + j[:, None] * S + i[None, :], tl.trans(x))
    tl.store(Y + S * T + tl.arange(0, S * T), tl.sort(tl.reshape(x, (S * T,))))
    tl.store(Y + 2 * S * T + i[:, None] * T + j[None, :], tl.cumsum(x, 0))
    tl.store(PLACES + i, tl.argmax(x, 1))


@triton.jit
def product_kernel(A, B, C, S: tl.constexpr, TYPE: tl.constexpr):
    i, j = tl.arange(0, S)[:, None], tl.arange(0, S)[None, :]
    tl.store(C + i * S + j, tl.dot(tl.load(A + i * S + j), tl.load(B + i * S + j), out_dtype=TYPE))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Each kernel compiled once, into a folder of the test's own."""
    cache: dict = {}

    def get(kernel, signature, constants, **options):
        key = (kernel.fn.__name__, *constants.items(), *signature.items(), *options.items())
        if key not in cache:
            cache[key] = compile_triton(kernel, signature, constants, **options)
        return cache[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield get


def matmul(compiled, type, precision, **options):
    signature = {"A": f"*{type}", "B": f"*{type}", "C": "*fp32", "M": "i32", "N": "i32", "K": "i32"}
    divisible = ("A", "B", "C", "N", "K")
    constants = {"BM": 32, "BN": 32, "BK": 32, "PRECISION": precision}
    return compiled(matmul_kernel, signature, constants, divisible=divisible, **options)


def run_matmul(text, shared, type, schedule="round_robin", findings="raise"):
    """Both ragged: 50 rows of 64, 48 columns of 64."""
    M, N, K = 50, 48, 96
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(s, generator=generator).to(TYPES[type]) for s in ((M, K), (K, N)))
    c = torch.full((M, N), torch.nan)
    result = load(text).launch("matmul_kernel", (2, 2), None, [a, b, c, M, N, K], shared=shared, schedule=schedule,
                               findings=findings)  # fmt: skip
    return result, c, a.double() @ b.double()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_add(compiled, schedule):
    k = compiled(add_kernel, {"X": "*fp32", "Y": "*fp32", "Z": "*fp32", "n": "i32"}, {"BLOCK": 256})
    x, y, z = torch.randn(1000), torch.randn(1000), torch.full((1000,), torch.nan)
    result = load(k.text).launch("add_kernel", 4, None, [x, y, z, 1000], schedule=schedule)
    assert torch.equal(z, x + y)
    assert (result.bytes_read, result.bytes_written, result.unique_bytes_read) == (8000, 4000, 8000)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("type", "precision", "bound"),
    [("fp32", "tf32", 4e-2), ("fp32", "ieee", 3e-5), ("bf16", "ieee", 3e-5), ("fp16", "ieee", 3e-5)],
)
def test_matmul(compiled, type, precision, bound, schedule):
    k = matmul(compiled, type, precision)
    result, c, expected = run_matmul(k.text, k.shared, type, schedule)
    assert (c - expected).abs().max() < bound
    depth = {"tf32": 8}.get(precision, 16)
    flops = 0 if type == "fp32" and precision == "ieee" else 2 * 64 * 64 * 96
    assert result.count("mma.") * 2 * 16 * 8 * depth == flops
    assert result.count("cp.async.ca") + result.count("cp.async.cg") > 0  # pipelined
    assert result.unique_bytes_written == 50 * 48 * 4
    assert result.unique_bytes_read == (50 * 96 + 96 * 48) * TYPES[type].itemsize


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_softmax(compiled, schedule):
    k = compiled(softmax_kernel, {"X": "*fp32", "Y": "*fp32", "n": "i32"}, {"BLOCK": 512})
    x, y = torch.randn(5, 300), torch.full((5, 300), torch.nan)
    result = load(k.text).launch("softmax_kernel", 5, None, [x, y, 300], shared=k.shared, schedule=schedule)
    torch.testing.assert_close(y, x.softmax(1))
    assert any("test_triton_kernels.py" in str(line.location) for line in result.lines)


def test_functions(compiled):
    k = compiled(functions_kernel, {"X": "*fp32", "Y": "*fp32", "n": "i32"}, {"BLOCK": 128})
    x, y = torch.randn(200) * 10, torch.full((200,), torch.nan)
    load(k.text).launch("functions_kernel", 2, None, [x, y, 200], shared=k.shared)
    d, a = x.double(), x.double().abs()
    expected = d.sin() + d.cos() + a.log() + a.sqrt() + a.rsqrt() + d.erf() + d.floor() + 1 / d + d.sigmoid()
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_atomics_reductions_and_scans(compiled, schedule):
    signature = {"X": "*fp32", "TOTAL": "*fp32", "HIGHEST": "*fp32", "COUNTS": "*i32", "ROWS": "*fp32", "n": "i32"}
    k = compiled(sums_kernel, signature, {"BLOCK": 256})
    x = torch.randn(900)
    total, highest, counts, rows = torch.zeros(1), torch.zeros(1), torch.zeros(2, dtype=torch.int32), torch.zeros(900)
    load(k.text).launch(
        "sums_kernel", 4, None, [x, total, highest, counts, rows, 900], shared=k.shared, schedule=schedule
    )
    torch.testing.assert_close(total[0], x.sum(), rtol=1e-4, atol=1e-4)
    assert highest[0] == x.max()
    assert counts.tolist() == [int((x <= 0).sum()), int((x > 0).sum())]
    for start in range(0, 900, 256):
        torch.testing.assert_close(rows[start : start + 256], x[start : start + 256].cumsum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_layouts(compiled, schedule):
    """Transposed, sorted, scanned: several warps store copies of a value, which is no race."""
    k = compiled(layouts_kernel, {"X": "*fp32", "Y": "*fp32", "PLACES": "*i32"}, {"S": 32, "T": 16})
    x, y, places = torch.randn(32, 16), torch.full((3, 512), torch.nan), torch.zeros(32, dtype=torch.int32)
    load(k.text).launch("layouts_kernel", 1, None, [x, y, places], shared=k.shared, schedule=schedule)
    assert torch.equal(y[0], x.T.flatten()) and torch.equal(y[1], x.flatten().sort().values)
    torch.testing.assert_close(y[2], x.cumsum(0).flatten())
    assert torch.equal(places, x.argmax(1).int())


@pytest.mark.parametrize(
    ("type", "of", "result", "name"),
    [("i8", torch.int8, torch.int32, "i32"), ("fp16", torch.float16, torch.float16, "fp16"),
     ("fp64", torch.float64, torch.float64, "fp64")],
)  # fmt: skip
def test_other_products(compiled, type, of, result, name):
    out = {"i32": tl.int32, "fp16": tl.float16, "fp64": tl.float64}[name]
    k = compiled(product_kernel, {"A": f"*{type}", "B": f"*{type}", "C": f"*{name}"}, {"S": 32, "TYPE": out})
    a, b = (torch.randint(-9, 9, (32, 32)).to(of) for _ in range(2))
    c = torch.zeros(32, 32, dtype=result)
    load(k.text).launch("product_kernel", 1, None, [a, b, c], shared=k.shared)
    assert torch.equal(c.double(), a.double() @ b.double())


def test_random_numbers(compiled):
    """Philox 4x32-10 by its definition."""
    k = compiled(random_kernel, {"Y": "*i32", "seed": "i32"}, {"BLOCK": 128})
    y = torch.zeros(128, dtype=torch.int32)
    load(k.text).launch("random_kernel", 1, None, [y, 1234], shared=k.shared)
    for i in (0, 1, 77, 127):
        c, key = [i, i + 1, i + 2, i + 3], [1234, 0]
        for _ in range(10):
            high, low = divmod(0xD2511F53 * c[0], 2**32), divmod(0xCD9E8D57 * c[2], 2**32)
            c = [low[0] ^ c[1] ^ key[0], low[1], high[0] ^ c[3] ^ key[1], high[1]]
            key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
        assert int(y[i]) % 2**32 == c[0] ^ c[1] ^ c[2] ^ c[3]


# ---- Broken on purpose ----


@pytest.mark.parametrize(("type", "precision"), [("fp32", "tf32"), ("bf16", "ieee")])
def test_mutants_of_a_matmul_are_found(compiled, type, precision):
    """All but a barrier at the pipeline's start that no reader needs, and masks of rows and columns that exist."""
    k = matmul(compiled, type, precision)
    unnoticed = {kind.__name__: [] for kind in (barriers, waits, masks)}
    tried = dict.fromkeys(unnoticed, 0)
    for kind in (barriers, waits, masks):
        for name, text in kind(k.text):
            tried[kind.__name__] += 1
            result, c, expected = run_matmul(text, k.shared, type, findings="return")
            if not result.findings:
                unnoticed[kind.__name__].append(name)
                # What nothing was found in must be harmless.
                assert (c - expected).abs().max() < 4e-2, name
    assert tried["barriers"] >= 5 and tried["waits"] == 2 and tried["masks"] >= 8
    assert len(unnoticed["barriers"]) <= 1 and not unnoticed["waits"]
    assert len(unnoticed["masks"]) < tried["masks"] * 0.8


def test_mutants_of_a_softmax_are_found(compiled):
    k = compiled(softmax_kernel, {"X": "*fp32", "Y": "*fp32", "n": "i32"}, {"BLOCK": 512})
    for name, text in mutants(k.text):
        x, y = torch.randn(5, 300), torch.full((5, 300), torch.nan)
        result = load(text).launch("softmax_kernel", 5, None, [x, y, 300], shared=k.shared, findings="return")
        columns = int("no mask" in name) and not result.findings
        assert result.findings or columns, name


def test_a_mutant_raises_with_the_source_line(compiled):
    k = matmul(compiled, "bf16", "ieee")
    _, text = next(waits(k.text))
    with pytest.raises(PtxFailure, match=r"unwaited copy at test_triton_kernels\.py:\d+"):
        run_matmul(text, k.shared, "bf16")


# ---- Reports ----


@pytest.mark.skipif(missing_tool("ptxas") is not None, reason=str(missing_tool("ptxas")))
def test_resources(compiled):
    k = matmul(compiled, "bf16", "ieee")
    cubin, resources = assemble(k.text)
    used = resources["matmul_kernel"]
    assert 0 < used.registers < 256 and used.spill_stores == used.spill_loads == used.stack == 0
    if not missing_tool("nvdisasm"):
        assert machine_instructions(cubin)["HMMA"] == k.text.count("mma.sync")


@pytest.mark.parametrize(("target", "instruction"), [("sm_90", "wgmma"), ("sm_100", "tcgen05"), ("gfx942", "v_mfma")])
def test_other_targets_compile(compiled, target, instruction):
    signature = {"A": "*bf16", "B": "*bf16", "C": "*fp32", "M": "i32", "N": "i32", "K": "i32"}
    constants = {"BM": 128, "BN": 64, "BK": 32, "PRECISION": "ieee"}
    k = compiled(matmul_kernel, signature, constants, target=target, divisible=("A", "B", "C", "N", "K"))
    assert instruction in k.text and k.binary
