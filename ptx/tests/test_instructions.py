"""Every instruction of the PTX machine against a plain model, on hand-written PTX."""

import functools
import math
import operator
import re

import numpy as np
import pytest
import torch

from ptx import instructions, load, missing
from ptx.decode import decode
from ptx.parse import parse, width

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"
REGISTERS = ".reg .pred %p<16>;\n.reg .b16 %h<16>;\n.reg .b32 %r<64>;\n.reg .b64 %d<64>;\n"
THREADS = 96


@pytest.fixture(autouse=True)
def seed():
    global RNG
    RNG = np.random.default_rng(0)


def kernel(body: str, pointers: int, variables: str = "") -> str:
    """Pointers come as %d0, %d1...; %r60 is the thread, %d60 its byte offset among 8-byte elements."""
    params = ", ".join(f".param .u64 p{k}" for k in range(pointers))
    loads = "\n".join(f"ld.param.u64 %d{k}, [p{k}];" for k in range(pointers))
    place = "mov.u32 %r60, %tid.x;\nmul.wide.u32 %d60, %r60, 8;"
    return f"{HEAD}{variables}.visible .entry k({params})\n{{\n{REGISTERS}{loads}\n{place}\n{body}\nret;\n}}\n"


def register(kind: str, k: int) -> str:
    return {1: f"%p{k}", 2: f"%h{k}", 4: f"%r{k}", 8: f"%d{k}"}[1 if kind == "pred" else max(2, width(kind))]


def load_value(kind: str, k: int, pointer: int) -> str:
    if kind == "pred":
        return f"ld.global.u8 %r50, [%d50];\nsetp.ne.u32 %p{k}, %r50, 0;"
    return f"ld.global.b{8 * width(kind)} {register(kind, k)}, [%d50];"


def elementwise_ptx(opcode: str, out: str, ins: list[str], immediates: str = "") -> str:
    body = []
    for k, kind in enumerate(ins):
        body += [f"add.u64 %d50, %d{k + 1}, %d60;", load_value(kind, k + 8, k + 1)]
    operands = ", ".join([register(out, 1)] + [register(kind, k + 8) for k, kind in enumerate(ins)]) + immediates
    # No register of the computation may be that of a pointer: pointers are %d0 ... %d3, values %d8 and above.
    operands = operands.replace("%d1,", "%d7,", 1) if out in WIDE else operands
    body += [f"{opcode} {operands};", "add.u64 %d51, %d0, %d60;"]
    if out == "pred":
        body += ["selp.b32 %r1, 1, 0, %p1;", "st.global.b32 [%d51], %r1;"]
    else:
        body.append(f"st.global.b{8 * width(out)} [%d51], {'%d7' if out in WIDE else register(out, 1)};")
    return kernel("\n".join(body), len(ins) + 1)


WIDE = {"b64", "u64", "s64", "f64"}


def to_bits(kind: str, values) -> np.ndarray:
    """Values as the low bits of 64."""
    if kind in ("f32", "f64", "f16"):
        float_type, int_type = {"f16": ("f2", "u2"), "f32": ("f4", "u4"), "f64": ("f8", "u8")}[kind]
        with np.errstate(all="ignore"):
            return np.asarray(values, np.float64).astype(float_type).view(int_type).astype(np.uint64)
    if kind == "bf16":
        return (
            torch.tensor(np.asarray(values, np.float64))
            .to(torch.bfloat16)
            .view(torch.int16)
            .numpy()
            .view(np.uint16)
            .astype(np.uint64)
        )
    if kind.endswith("x2"):
        low, high = (to_bits(kind[:-2], [v[i] for v in values]) for i in (0, 1))
        return low | high << np.uint64(16)
    return np.array([int(v) % 2**64 for v in values], np.uint64)


def from_bits(kind: str, bits: np.ndarray) -> list:
    bits = np.asarray(bits, np.uint64)
    if kind in ("f32", "f64", "f16"):
        int_type, float_type = {"f16": ("u2", "f2"), "f32": ("u4", "f4"), "f64": ("u8", "f8")}[kind]
        with np.errstate(all="ignore"):
            return bits.astype(int_type).view(float_type).astype(np.float64).tolist()
    if kind == "bf16":
        return torch.tensor(bits.astype(np.uint16).view(np.int16)).view(torch.bfloat16).double().tolist()
    if kind.endswith("x2"):
        halves = (from_bits(kind[:-2], bits >> np.uint64(s) & np.uint64(0xFFFF)) for s in (0, 16))
        return list(zip(*halves, strict=True))
    return [wrap(kind, int(b)) for b in bits]


def wrap(kind: str, value: int) -> int:
    if kind == "pred":
        return value & 1
    n = 8 * width(kind)
    value %= 2**n
    return value - 2**n if kind[0] == "s" and value >> (n - 1) else value


SPECIAL = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-40, -3e-45, 65504.0, 1e30, 6e-8, 2.5, -2.5, 0.5, 1.5]


def samples(kind: str) -> list:
    if kind == "pred":
        return RNG.integers(0, 2, THREADS).tolist()
    if kind.endswith("x2"):
        return list(zip(samples(kind[:-2]), samples(kind[:-2]), strict=True))
    if kind in ("f16", "bf16", "f32", "f64"):
        values = np.concatenate([SPECIAL, RNG.standard_normal(THREADS - len(SPECIAL)) * 4])
        return from_bits(kind, to_bits(kind, RNG.permutation(values)))
    n = 8 * width(kind)
    some = [0, 1, -1, 2 ** (n - 1), 2 ** (n - 1) - 1, 2, 7, n - 1]
    values = some + [int.from_bytes(RNG.bytes(8), "little") >> int(s) for s in RNG.integers(0, 64, THREADS - len(some))]
    return [wrap(kind, values[i]) for i in RNG.permutation(THREADS)]


def run_elementwise(opcode, out, ins, values, immediates=""):
    arrays = [to_bits(kind, v) for kind, v in zip(ins, values, strict=True)]
    result = np.zeros(THREADS, np.uint64)
    load(elementwise_ptx(opcode, out, ins, immediates)).launch("k", 1, THREADS, [result, *arrays])
    return from_bits(out, result)


def same(kind: str, got, expected, ulps: float) -> bool:
    if isinstance(got, tuple):
        return all(same(kind[:-2], g, e, ulps) for g, e in zip(got, expected, strict=True))
    if not isinstance(got, float):
        return got == expected
    if math.isnan(expected):
        return math.isnan(got)
    expected = from_bits(kind, to_bits(kind, [expected]))[0]
    if got == expected:
        return got != 0 or math.copysign(1, got) == math.copysign(1, expected)
    grain = {"f16": 2**-10, "bf16": 2**-7, "f32": 2**-23, "f64": 2**-52}[kind]
    return abs(got - expected) <= ulps * grain * max(abs(expected), 1e-37)


def check(opcode, out, ins, model, *, ulps=0.0, immediates="", values=None):
    values = values or [samples(kind) for kind in ins]
    got = run_elementwise(opcode, out, ins, values, immediates)
    for result, *x in zip(got, *values, strict=True):
        expected = model(*x)
        if not out.startswith(("f", "bf")):
            expected = wrap(out, int(expected))
        assert same(out, result, expected, ulps), f"{opcode} {x}: got {result}, expected {expected}"


# ---- Integers and bits ----


def divided(a, b):
    return -1 if b == 0 else int(math.copysign(1, a) * math.copysign(1, b)) * (abs(a) // abs(b))


def bit_field(kind):
    n = 8 * width(kind)

    def model(a, position, length):
        position, length = position % 256, length % 256
        bits = a % 2**n
        if length == 0:
            return 0
        fill = kind[0] == "s" and bits >> min(position + length - 1, n - 1) & 1
        taken = bits >> position & (2 ** min(length, max(n - position, 0)) - 1)
        kept = min(length, max(n - position, 0))
        return taken | (((2**n - 1) >> kept << kept) if fill else 0)

    return model


def inserted(n):
    def model(a, b, position, length):
        position, length = position % 256, length % 256
        mask = ((2**length - 1) << position) % 2**n if position < n else 0
        return b & ~mask | (a << position) & mask

    return model


def permuted(a, b, selector):
    table = (a | b << 32).to_bytes(8, "little")
    picked = []
    for k in range(4):
        s = selector >> 4 * k & 15
        byte = table[s & 7]
        picked.append((255 if byte & 128 else 0) if s & 8 else byte)
    return int.from_bytes(bytes(picked), "little")


CASES: dict[str, tuple] = {}  # opcode -> (out, ins, model, options)


def case(opcode, out, ins, model, **options):
    CASES[opcode] = (out, ins, model, options)


COMPARE = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
for t in ("s16", "u16", "s32", "u32", "s64", "u64"):
    n, double = 8 * width(t), f"{t[0]}{16 * width(t)}"
    case(f"add.{t}", t, [t, t], operator.add)
    case(f"sub.{t}", t, [t, t], operator.sub)
    case(f"neg.{t}", t, [t], operator.neg)
    case(f"abs.{t}", t, [t], abs)
    case(f"mul.lo.{t}", t, [t, t], operator.mul)
    case(f"mul.hi.{t}", t, [t, t], lambda a, b, n=n: a * b >> n)
    case(f"mad.lo.{t}", t, [t, t, t], lambda a, b, c: a * b + c)
    case(f"mad.hi.{t}", t, [t, t, t], lambda a, b, c, n=n: (a * b >> n) + c)
    case(f"div.{t}", t, [t, t], divided)
    case(f"rem.{t}", t, [t, t], lambda a, b: a - b * divided(a, b) if b else a)
    case(f"min.{t}", t, [t, t], min)
    case(f"max.{t}", t, [t, t], max)
    case(f"sad.{t}", t, [t, t, t], lambda a, b, c: c + abs(a - b))
    case(f"shr.{t}", t, [t, "u32"], lambda a, s, n=n: a >> min(s, n) if a >= 0 or s < n else -1)
    for name, f in COMPARE.items():
        case(f"setp.{name}.{t}", "pred", [t, t], f)
    if n < 64:
        case(f"mul.wide.{t}", double, [t, t], operator.mul)
        case(f"mad.wide.{t}", double, [t, t, double], lambda a, b, c: a * b + c)
    if n > 16:
        case(f"bfe.{t}", t, [t, "u32", "u32"], bit_field(t))
        find = lambda a, n=n: (a if a >= 0 else ~a).bit_length() - 1  # noqa: E731
        case(f"bfind.{t}", "u32", [t], find)
        shift = lambda a, n=n, find=find: n - 1 - find(a) if find(a) >= 0 else -1  # noqa: E731
        case(f"bfind.shiftamt.{t}", "u32", [t], shift)
for t, f in {"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}.items():
    case(f"setp.{t}.u32", "pred", ["u32", "u32"], f)
case("setp.eq.b32", "pred", ["b32", "b32"], operator.eq)
for t in ("b16", "b32", "b64"):
    n = 8 * width(t)
    case(f"mov.{t}", t, [t], lambda a: a)
    case(f"selp.{t}", t, [t, t, "pred"], lambda a, b, c: a if c else b)
    case(f"and.{t}", t, [t, t], operator.and_)
    case(f"or.{t}", t, [t, t], operator.or_)
    case(f"xor.{t}", t, [t, t], operator.xor)
    case(f"not.{t}", t, [t], operator.invert)
    case(f"cnot.{t}", t, [t], operator.not_)
    case(f"shl.{t}", t, [t, "u32"], lambda a, s, n=n: a << min(s, n))
    if n > 16:
        case(f"bfi.{t}", t, [t, t, "u32", "u32"], inserted(n))
        case(f"popc.{t}", "u32", [t], int.bit_count)
        case(f"clz.{t}", "u32", [t], lambda a, n=n: n - a.bit_length())
        case(f"brev.{t}", t, [t], lambda a, n=n: int(f"{a:0{n}b}"[::-1], 2))
case("mov.pred", "pred", ["pred"], lambda a: a)
case("not.pred", "pred", ["pred"], lambda a: not a)
case("and.pred", "pred", ["pred", "pred"], operator.and_)
case("or.pred", "pred", ["pred", "pred"], operator.or_)
case("xor.pred", "pred", ["pred", "pred"], operator.xor)
case("selp.pred", "pred", ["pred", "pred", "pred"], lambda a, b, c: a if c else b)
case("prmt.b32", "b32", ["b32", "b32", "b32"], permuted)
case("shf.l.wrap.b32", "b32", ["b32"] * 3, lambda a, b, c: (b << 32 | a) << (c & 31) >> 32)
case("shf.r.wrap.b32", "b32", ["b32"] * 3, lambda a, b, c: (b << 32 | a) >> (c & 31))
case("shf.l.clamp.b32", "b32", ["b32"] * 3, lambda a, b, c: (b << 32 | a) << min(c, 32) >> 32)
case("shf.r.clamp.b32", "b32", ["b32"] * 3, lambda a, b, c: (b << 32 | a) >> min(c, 32))
case("mul24.lo.u32", "u32", ["u32", "u32"], lambda a, b: (a % 2**24) * (b % 2**24))
case("lop3.b32", "b32", ["b32"] * 3, lambda a, b, c: (a & b) ^ c, immediates=", 0x6A")
for t in "su":
    dot = lambda a, b, c, t=t: c + sum(wrap(f"{t}8", a >> k) * wrap(f"{t}8", b >> k) for k in (0, 8, 16, 24))  # noqa: E731
    case(f"dp4a.{t}32.{t}32", f"{t}32", [f"{t}32"] * 3, dot)


# ---- Floats ----


def real(f):
    """With what C says where Python raises."""

    def model(*x):
        with np.errstate(all="ignore"):
            return float(f(*map(np.float64, x)))

    return model


def smaller(a, b):
    if math.isnan(a) or math.isnan(b):
        return b if math.isnan(a) else a
    return min(a, b, key=lambda x: (x, math.copysign(1, x)))


def larger(a, b):
    return -smaller(-a, -b)


def or_nan(f):
    return lambda a, b: math.nan if math.isnan(a) or math.isnan(b) else f(a, b)


def fused(a, b, c):
    """a * b + c for values whose product double holds; inputs of f64 are tested on their own."""
    return real(lambda a, b, c: a * b + c)(a, b, c)


ORDERED = {name: lambda a, b, f=f: not (math.isnan(a) or math.isnan(b)) and f(a, b) for name, f in COMPARE.items()}
UNORDERED = {f"{name}u": lambda a, b, f=f: math.isnan(a) or math.isnan(b) or f(a, b) for name, f in COMPARE.items()}
FLOAT_COMPARE = ORDERED | UNORDERED
FLOAT_COMPARE["num"] = lambda a, b: not (math.isnan(a) or math.isnan(b))
FLOAT_COMPARE["nan"] = lambda a, b: math.isnan(a) or math.isnan(b)
UNARY = {"sqrt": np.sqrt, "rcp": np.reciprocal, "rsqrt": lambda a: 1 / np.sqrt(a), "ex2": np.exp2, "lg2": np.log2}
UNARY |= {"sin": np.sin, "cos": np.cos, "tanh": np.tanh}
for t in ("f16", "bf16", "f32", "f64"):
    for name, f in FLOAT_COMPARE.items():
        case(f"setp.{name}.{t}", "pred", [t, t], f)
for t in ("f32", "f64"):
    for name, f in {"add.rn": np.add, "sub.rn": np.subtract, "mul.rn": np.multiply, "div.rn": np.divide}.items():
        case(f"{name}.{t}", t, [t, t], real(f))
    case(f"neg.{t}", t, [t], operator.neg)
    case(f"abs.{t}", t, [t], abs)
    case(f"min.{t}", t, [t, t], smaller)
    case(f"max.{t}", t, [t, t], larger)
    case(f"min.NaN.{t}", t, [t, t], or_nan(smaller))
    case(f"max.NaN.{t}", t, [t, t], or_nan(larger))
    case(f"copysign.{t}", t, [t, t], lambda a, b: math.copysign(b, a))
    case(f"fma.rn.{t}", t, [t, t, t], fused)
    for name, f in UNARY.items():
        rounding = "rn" if name in ("sqrt", "rcp") else "approx"
        case(f"{name}.{rounding}.{t}", t, [t], real(f), ulps=2.0)
    case(f"cvt.rni.{t}.{t}", t, [t], real(np.rint))
    case(f"testp.finite.{t}", "pred", [t], math.isfinite)
    case(f"testp.infinite.{t}", "pred", [t], math.isinf)
    case(f"testp.number.{t}", "pred", [t], lambda a: not math.isnan(a))
    case(f"testp.notanumber.{t}", "pred", [t], math.isnan)
    tiny = {"f32": 2.0**-126, "f64": 2.0**-1022}[t]
    case(f"testp.normal.{t}", "pred", [t], lambda a, s=tiny: math.isfinite(a) and abs(a) >= s)
    case(f"testp.subnormal.{t}", "pred", [t], lambda a, s=tiny: 0 < abs(a) < s)
case("cvt.rni.f16.f16", "f16", ["f16"], real(np.rint))
case("div.full.f32", "f32", ["f32", "f32"], real(np.divide))
case("add.ftz.f32", "f32", ["f32", "f32"], real(lambda a, b: flush(flush(a) + flush(b))))
case("mad.rn.f32", "f32", ["f32"] * 3, fused)
case("add.sat.f32", "f32", ["f32", "f32"], real(lambda a, b: 0.0 if math.isnan(a + b) else min(max(a + b, 0.0), 1.0)))


def flush(a):
    return math.copysign(0.0, a) if abs(a) < 2.0**-126 else a


def both(f):
    return lambda *x: tuple(f(*half) for half in zip(*x, strict=True))


SMALL = {
    "add.rn": (2, real(np.add)),
    "sub.rn": (2, real(np.subtract)),
    "mul.rn": (2, real(np.multiply)),
    "neg": (1, operator.neg),
}
SMALL |= {"abs": (1, abs), "min": (2, smaller), "max": (2, larger), "tanh.approx": (1, real(np.tanh))}
SMALL |= {"min.NaN": (2, or_nan(smaller)), "max.NaN": (2, or_nan(larger)), "ex2.approx": (1, real(np.exp2))}
SMALL |= {"fma.rn": (3, fused), "fma.rn.relu": (3, lambda a, b, c: larger(fused(a, b, c), 0.0))}
for name, (n, f) in SMALL.items():
    for t in ("f16", "bf16"):
        case(f"{name}.{t}", t, [t] * n, f)
        case(f"{name}.{t}x2", f"{t}x2", [f"{t}x2"] * n, both(f))

# ---- Conversions ----

INTEGERS = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"]


def saturated(t):
    n = 8 * width(t)
    low, high = (-(2 ** (n - 1)), 2 ** (n - 1) - 1) if t[0] == "s" else (0, 2**n - 1)

    def model(a):
        return 0 if math.isnan(a) else high if a >= high else low if a <= low else math.trunc(a)

    return model


for of in [*INTEGERS, "f16", "bf16", "f32", "f64"]:
    for to in INTEGERS:
        if of in INTEGERS:
            case(f"cvt.{to}.{of}", to, [of], lambda a: a)
        else:
            case(f"cvt.rzi.{to}.{of}", to, [of], saturated(to))
    for to in ("f16", "bf16", "f32", "f64"):
        # float() of an integer rounds to double first; f32 of a 64-bit integer has a test of its own
        case(f"cvt.rn.{to}.{of}", to, [of], float, ulps=1.0 if of in ("u64", "s64") else 0.0)
case("cvt.sat.s8.s32", "s8", ["s32"], lambda a: min(max(a, -128), 127))
case("cvt.rni.s32.f32", "s32", ["f32"], lambda a: 0 if math.isnan(a) else saturated("s32")(np.rint(a)))
case("cvt.rmi.s32.f32", "s32", ["f32"], lambda a: 0 if math.isnan(a) else saturated("s32")(np.floor(a)))
case("cvt.rpi.s32.f32", "s32", ["f32"], lambda a: 0 if math.isnan(a) else saturated("s32")(np.ceil(a)))
case("cvt.rmi.f32.f32", "f32", ["f32"], real(np.floor))
case("cvt.rz.bf16.f32", "bf16", ["f32"], lambda a: from_bits("bf16", to_bits("f32", [a]) >> np.uint64(16))[0])
case("cvt.rn.f16x2.f32", "f16x2", ["f32", "f32"], lambda a, b: (b, a))
case("cvt.rn.bf16x2.f32", "bf16x2", ["f32", "f32"], lambda a, b: (b, a))
case("cvt.rn.relu.f16x2.f32", "f16x2", ["f32", "f32"], lambda a, b: (larger(b, 0.0), larger(a, 0.0)))
case("cvt.rn.relu.bf16x2.f32", "bf16x2", ["f32", "f32"], lambda a, b: (larger(b, 0.0), larger(a, 0.0)))
case("cvt.rn.relu.f16.f32", "f16", ["f32"], lambda a: larger(a, 0.0))
case("cvt.rn.relu.bf16.f32", "bf16", ["f32"], lambda a: larger(a, 0.0))


def tf32(a):
    if not math.isfinite(a) or a == 0:
        return a
    grain = 2.0 ** (max(math.frexp(a)[1] - 1, -126) - 10)
    return math.copysign(math.floor(abs(a) / grain + 0.5) * grain, a)


case("cvt.rna.tf32.f32", "f32", ["f32"], tf32)


@pytest.mark.parametrize("opcode", CASES)
def test_elementwise(opcode):
    out, ins, model, options = CASES[opcode]
    if opcode == "fma.rn.f64":  # numbers whose product double holds, as `fused` wants
        exact = [float(v) for v in RNG.integers(-1000, 1000, THREADS)]
        options = {"values": [exact, exact[::-1], exact]}
    check(opcode, out, ins, model, **options)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_the_direction_of_rounding(mode):
    a, b = samples("f32"), samples("f32")
    direction = {"rn": None, "rz": 0, "rm": -math.inf, "rp": math.inf}[mode]
    for got, x, y in zip(run_elementwise(f"mul.{mode}.f32", "f32", ["f32", "f32"], [a, b]), a, b, strict=True):
        exact = x * y
        near = float(np.float32(exact)) if abs(exact) < 3e38 else exact
        if direction is None or math.isnan(exact) or math.isinf(exact) or near == exact or abs(exact) > 3e38:
            continue
        toward = 0.0 if mode == "rz" else direction
        bound = (
            near
            if (near - exact) * (toward - exact) >= 0
            else float(np.nextafter(np.float32(near), np.float32(toward)))
        )
        assert got == bound


def test_compare_with_boolean_and_complement():
    a, c = np.arange(THREADS, dtype=np.uint64), RNG.integers(0, 2, THREADS).astype(np.uint64)
    result = np.zeros(THREADS, np.uint64)
    for name, f in {"and": operator.and_, "or": operator.or_, "xor": operator.xor}.items():
        body = f"""
        add.u64 %d10, %d1, %d60; ld.global.u32 %r1, [%d10];
        add.u64 %d11, %d2, %d60; ld.global.u32 %r2, [%d11]; setp.ne.u32 %p3, %r2, 0;
        setp.lt.{name}.s32 %p1|%p2, %r1, 40, !%p3;
        selp.u32 %r3, 1, 0, %p1; selp.u32 %r4, 2, 0, %p2; or.b32 %r5, %r3, %r4;
        add.u64 %d12, %d0, %d60; st.global.u32 [%d12], %r5;"""
        load(kernel(body, 3)).launch("k", 1, THREADS, [result, a, c])
        less = a < 40
        expected = f(less, c == 0) * 1 + f(~less, c == 0) * 2
        assert (result == expected).all()


def test_carries():
    """128-bit a * b + c by 32- and 64-bit limbs, and a 128-bit difference."""
    values = [np.array([int.from_bytes(RNG.bytes(8), "little") for _ in range(THREADS)], np.uint64) for _ in range(2)]
    low, high, less = (np.zeros(THREADS, np.uint64) for _ in range(3))
    body = """
    add.u64 %d10, %d3, %d60; ld.global.b64 %d11, [%d10]; add.u64 %d10, %d4, %d60; ld.global.b64 %d12, [%d10];
    mad.lo.cc.u64 %d13, %d11, %d12, %d11; madc.hi.u64 %d14, %d11, %d12, 0;
    mov.b64 {%r1, %r2}, %d13; mov.b64 {%r3, %r4}, %d14; mov.b64 {%r5, %r6}, %d12;
    add.cc.u32 %r1, %r1, %r5; addc.cc.u32 %r2, %r2, %r6; addc.cc.u32 %r3, %r3, 0; addc.u32 %r4, %r4, 0;
    mov.b64 %d13, {%r1, %r2}; mov.b64 %d14, {%r3, %r4};
    sub.cc.u64 %d15, %d11, %d12; subc.u64 %d16, 0, 0;
    add.u64 %d10, %d0, %d60; st.global.b64 [%d10], %d13; add.u64 %d10, %d1, %d60; st.global.b64 [%d10], %d14;
    add.u64 %d10, %d2, %d60; st.global.b64 [%d10], %d16;"""
    load(kernel(body, 5)).launch("k", 1, THREADS, [low, high, less, *values])
    for a, b, x, y, z in zip(*values, low, high, less, strict=True):
        assert int(x) | int(y) << 64 == int(a) * int(b) + int(a) + int(b)
        assert z == (2**64 - 1 if a < b else 0)


# ---- Memory ----


@pytest.mark.parametrize(
    ("kind", "loaded"), [("s8", np.int8), ("u8", np.uint8), ("s16", np.int16), ("u16", np.uint16), ("s32", np.int32)]
)
def test_loads_extend_by_their_sign(kind, loaded):
    data = RNG.integers(np.iinfo(loaded).min, np.iinfo(loaded).max, THREADS, dtype=loaded)
    result = np.zeros(THREADS, np.int64)
    body = f"""
    mul.wide.u32 %d10, %r60, {data.itemsize}; add.u64 %d10, %d1, %d10; ld.global.nc.L1::no_allocate.{kind} %d11, [%d10];
    add.u64 %d12, %d0, %d60; st.global.u64 [%d12], %d11;"""
    load(kernel(body, 2)).launch("k", 1, THREADS, [result, data])
    assert (result == data).all()


def test_vectors_offsets_generic_addresses_and_local_memory():
    data = RNG.integers(0, 2**31, (THREADS, 4), dtype=np.int32)
    result = np.zeros_like(data)
    body = """
    .local .align 16 .b8 depot[32];
    .reg .b64 %SP; .reg .b64 %SPL;
    mov.u64 %SPL, depot; cvta.local.u64 %SP, %SPL;
    mul.wide.u32 %d10, %r60, 16; add.u64 %d11, %d1, %d10;
    ld.global.v2.u32 {%r1, _}, [%d11]; ld.global.v2.u32 {%r2, %r3}, [%d11+0];
    ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%d11];
    st.local.v4.b32 [%SPL+16], {%r7, %r6, %r5, %r4}; ld.v2.b32 {%r8, %r9}, [%SP+24];
    mov.u32 %r20, tile; mad.lo.u32 %r20, %r60, 8, %r20;
    mov.u64 %d20, tile; cvta.shared.u64 %d21, %d20; add.u64 %d21, %d21, %d60;
    st.shared.v2.u32 [%r20], {%r2, %r3}; ld.u32 %r10, [%d21];
    cvta.to.shared.u64 %d22, %d21; ld.shared.u32 %r11, [%d22+4];
    add.u64 %d12, %d0, %d10; st.global.v4.b32 [%d12], {%r10, %r11, %r9, %r8};"""
    load(kernel(body, 2, ".shared .align 16 .b8 tile[768];\n")).launch("k", 1, THREADS, [result, data])
    assert (result == data[:, [0, 1, 0, 1]]).all()
    with pytest.raises(AssertionError, match="shared"):
        load(kernel(body, 2, ".shared .align 16 .b8 tile[764];\n")).launch("k", 1, THREADS, [result, data])


def test_constants_of_the_module():
    result = np.zeros(THREADS, np.uint64)
    variables = ".const .align 4 .b32 table[3] = {5, -1, 0f3F800000};\n.global .align 8 .u64 link[1] = {table};\n"
    body = """
    ld.global.u64 %d10, [link]; ld.const.u32 %r1, [table+4]; ld.const.u32 %r2, [%d10+8];
    mov.b64 %d11, {%r1, %r2}; add.u64 %d12, %d0, %d60; st.global.u64 [%d12], %d11;"""
    load(kernel(body, 1, variables)).launch("k", 1, THREADS, [result])
    assert (result == (0x3F800000 << 32 | 0xFFFFFFFF)).all()


ATOMICS = {"add": operator.add, "min": min, "max": max, "and": operator.and_, "or": operator.or_, "xor": operator.xor}
ATOMICS |= {
    "exch": lambda a, b: b,
    "inc": lambda a, b: 0 if a >= b else a + 1,
    "dec": lambda a, b: b if a == 0 or a > b else a - 1,
}


ATOMIC_CASES = [(operation, kind) for operation in (*ATOMICS, "cas") for kind in ("u32", "s32", "u64", "s64")]
ATOMIC_CASES += [("add", kind) for kind in ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2")]


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize(("operation", "kind"), ATOMIC_CASES)
def test_atomics(operation, kind, space):
    """A thread after the other combines with one place, and the old values come back."""
    if "x2" in kind:
        values = [(1.0, 0.5)] * THREADS
    else:
        values = [1.5] * THREADS if "f" in kind else samples(kind)
    values[0] = values[1]
    add = both(operator.add) if "x2" in kind else operator.add
    start = (2.0, 3.0) if "x2" in kind else 2.0 if "f" in kind else 9
    n, k = 8 * width(kind), width(kind)
    place = np.frombuffer(to_bits(kind, [start]).tobytes(), np.uint64).copy()
    old = np.zeros(THREADS, np.uint64)
    noftz = ".noftz" if kind.startswith(("f16", "bf16")) else ""
    x, y = register(kind, 10), register(kind, 11)
    data = to_bits(kind, values)
    operand = f"{x}, {x}" if operation == "cas" else x
    body = f"""
    add.u64 %d30, %d2, %d60; ld.global.b{n} {x}, [%d30];
    setp.eq.u32 %p1, %r60, 0; ld.global.b{n} {y}, [%d0];
    @%p1 st.shared.b{n} [cell], {y};
    bar.sync 0;
    atom.{space}.{operation}{noftz}.{kind} {y}, [{"cell" if space == "shared" else "%d0"}], {operand};
    add.u64 %d31, %d1, %d60; st.global.b{n} [%d31], {y};
    bar.sync 0;
    @%p1 ld.shared.b{n} {y}, [cell];
    setp.eq.u32 %p2, %r60, {0 if space == "shared" else 99}; @%p2 st.global.b{n} [%d0], {y};"""
    # The first read of the place is ordered before the atomics of other warps by the barrier.
    load(kernel(body, 3, f".shared .align 8 .b8 cell[{max(k, 8)}];\n")).launch(
        "k", 1, THREADS, [place, old, data], schedule="ahead"
    )
    expected = start
    f = add if operation == "add" else (lambda a, b: b if a == b else a) if operation == "cas" else ATOMICS[operation]
    for got, v in zip(from_bits(kind, old), values, strict=True):
        assert got == expected
        combined = f(expected, v)
        expected = from_bits(kind, to_bits(kind, [combined]))[0]
    assert from_bits(kind, place)[0] == expected


def test_red_and_narrow_atomics():
    total, flag = np.zeros(1, np.float32), np.array([7], np.uint16)
    body = """
    mov.b32 %r1, 0f40000000; red.global.gpu.relaxed.add.f32 [%d0], %r1;
    mov.b16 %h1, 7; mov.b16 %h2, 9; atom.global.cas.b16 %h3, [%d1], %h1, %h2; atom.global.exch.b16 %h3, [%d1], %h2;"""
    text = kernel(body, 2)
    load(text).launch("k", 2, THREADS, [total, flag])
    assert total[0] == 2 * 2 * THREADS and flag[0] == 9


@pytest.mark.parametrize("form", ["x1", "x2", "x4", "x1.trans", "x2.trans", "x4.trans"])
def test_ldmatrix(form):
    n = int(form[1])
    rows = RNG.integers(0, 2**16, (8 * n, 8), dtype=np.uint16)
    result = np.zeros((32, n), np.uint32)
    registers = ", ".join(f"%r{k + 10}" for k in range(n))
    stores = "\n".join(f"st.global.u32 [%d12+{4 * k}], %r{k + 10};" for k in range(n))
    body = f"""
    mul.wide.u32 %d10, %r60, 16; add.u64 %d11, %d1, %d10; mov.u32 %r1, tile; mad.lo.u32 %r2, %r60, 16, %r1;
    setp.lt.u32 %p1, %r60, {8 * n}; @%p1 ld.global.v4.u32 {{%r3, %r4, %r5, %r6}}, [%d11];
    @%p1 st.shared.v4.u32 [%r2], {{%r3, %r4, %r5, %r6}}; bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.{form}.shared::cta.b16 {{{registers}}}, [%r2];
    mul.wide.u32 %d13, %r60, {4 * n}; add.u64 %d12, %d0, %d13; {stores}"""
    load(kernel(body, 2, ".shared .align 16 .b8 tile[512];\n")).launch("k", 1, 32, [result, rows])
    for k in range(n):
        matrix = rows[8 * k : 8 * k + 8]
        matrix = matrix.T if "trans" in form else matrix
        for lane in range(32):
            r, c = lane // 4, 2 * (lane % 4)
            assert result[lane, k] == int(matrix[r, c]) | int(matrix[r, c + 1]) << 16


@pytest.mark.parametrize("form", ["x1", "x2", "x4", "x1.trans", "x2.trans", "x4.trans"])
def test_stmatrix(form):
    n = int(form[1])
    registers = RNG.integers(0, 2**32, (32, n), dtype=np.uint32)
    result = np.zeros((8 * n, 8), np.uint16)
    names = ", ".join(f"%r{k + 10}" for k in range(n))
    loads = "\n".join(f"ld.global.u32 %r{k + 10}, [%d12+{4 * k}];" for k in range(n))
    body = f"""
    mul.wide.u32 %d13, %r60, {4 * n}; add.u64 %d12, %d1, %d13; {loads}
    mov.u32 %r1, tile; mad.lo.u32 %r2, %r60, 16, %r1;
    stmatrix.sync.aligned.m8n8.{form}.shared.b16 [%r2], {{{names}}}; bar.warp.sync -1;
    mul.wide.u32 %d10, %r60, 16; add.u64 %d11, %d0, %d10; setp.lt.u32 %p1, %r60, {8 * n};
    @%p1 ld.shared.v4.u32 {{%r3, %r4, %r5, %r6}}, [%r2]; @%p1 st.global.v4.u32 [%d11], {{%r3, %r4, %r5, %r6}};"""
    load(kernel(body, 2, ".shared .align 16 .b8 tile[512];\n")).launch("k", 1, 32, [result, registers])
    for k in range(n):
        matrix = result[8 * k : 8 * k + 8]
        matrix = matrix.T if "trans" in form else matrix
        for lane in range(32):
            r, c = lane // 4, 2 * (lane % 4)
            assert registers[lane, k] == int(matrix[r, c]) | int(matrix[r, c + 1]) << 16


@pytest.mark.parametrize("word", ["atom", "red"])
def test_atomics_of_vectors(word):
    """Of each number by itself; all lanes add to the same four."""
    result, old = np.zeros(4, np.float32), np.zeros((32, 4), np.float32)
    out = "{%r10, %r11, %r12, %r13}, " if word == "atom" else ""
    body = f"""
    cvt.rn.f32.u32 %r1, %r60; mov.b32 %r2, 0f3F800000; mov.b32 %r3, 0f40000000; mov.b32 %r4, 0f00000000;
    {word}.global.gpu.relaxed.add.v4.f32 {out}[%d0], {{%r1, %r2, %r3, %r4}};"""
    if word == "atom":
        body += """
        mul.wide.u32 %d10, %r60, 16; add.u64 %d11, %d1, %d10;
        st.global.v4.b32 [%d11], {%r10, %r11, %r12, %r13};"""
    load(kernel(body, 2)).launch("k", 1, 32, [result, old])
    assert result.tolist() == [sum(range(32)), 32, 64, 0]
    if word == "atom":
        assert old[:, 1].tolist() == [*range(32)]


def swizzled(places, kind):
    """Places of bytes in shared memory by the swizzle that a descriptor names: of 128, 64, 32 bytes, or none."""
    bits = {1: 3, 2: 2, 3: 1, 0: 0}[kind]
    return places ^ ((places >> 7 & (2**bits - 1)) << 4)


def laid_out(b, kind, transposed):
    """Bytes of shared memory with B [K, N] as a wgmma's descriptor of that swizzle has it, and the descriptor.

    Blocks of 8 lines by a row of the swizzle, one after the other: along a line first, then across.
    """
    lines = b if transposed else b.T
    size, row = b.dtype.itemsize, 256 >> kind if kind else 16
    line, byte = np.meshgrid(np.arange(len(lines)), np.arange(lines.shape[1] * size), indexing="ij")
    blocks = -(-lines.shape[1] * size // row)
    along, across = 8 * row, 8 * row * blocks
    places = swizzled(line // 8 * across + line % 8 * row + byte // row * along + byte % row, kind)
    memory = np.zeros(8192, np.uint8)
    memory[places] = np.ascontiguousarray(lines).view(np.uint8)
    leading, stride = (across, along) if transposed and not kind else (along, across)
    return memory, leading >> 4 << 16 | stride >> 4 << 32 | kind << 62


@pytest.mark.parametrize("N", [8, 64])
@pytest.mark.parametrize("kind", [0, 1, 2, 3])
@pytest.mark.parametrize("type", ["tf32", "f16", "f16, transposed", "bf16"])
def test_wgmma(type, kind, N):
    """D [64, N] += A [64, K] B: whole numbers, which every type holds."""
    transposed, type = "transposed" in type, type.split(",")[0]
    K = 8 if type == "tf32" else 16
    a, b, d = RNG.integers(-4, 5, (64, K)), RNG.integers(-4, 5, (K, N)), RNG.integers(-9, 10, (64, N))
    stored = {"tf32": np.float32, "f16": np.float16, "bf16": np.float32}[type]
    bits = lambda x: (x.astype(stored).view(np.uint32) >> 16).astype(np.uint16) if type == "bf16" else x.astype(stored)  # noqa: E731
    memory, described = laid_out(bits(b), kind, transposed)
    lane, warp = np.arange(32), np.arange(4)[:, None]
    registers, per = np.zeros((4, 32, 4), np.uint32), 1 if type == "tf32" else 2
    for r in range(4):
        rows, column = 16 * warp + lane // 4 + 8 * (r % 2), lane % 4 * per + 4 * per * (r // 2)
        pair = np.stack([bits(a)[rows, column + e] for e in range(per)], -1)
        registers[:, :, r] = np.ascontiguousarray(pair).view(np.uint32)[..., 0]
    sums = np.zeros((4, 32, N // 2), np.float32)
    places = [(16 * warp + lane // 4 + 8 * (e // 2 % 2), 8 * (e // 4) + 2 * (lane % 4) + e % 2) for e in range(N // 2)]
    for e, place in enumerate(places):
        sums[:, :, e] = d[place]
    sums_of = ", ".join(f"%f{e}" for e in range(N // 2))
    each = lambda op: "\n".join(op.format(e=e, at=4 * e) for e in range(N // 2))  # noqa: E731
    copied = (
        "ld.global.v4.u32 {{%r3, %r4, %r5, %r6}}, [%d11+{at}]; st.shared.v4.u32 [%r2+{at}], {{%r3, %r4, %r5, %r6}};"
    )
    signs = "1, 1, 1" if type == "tf32" else f"1, 1, 1, {int(transposed)}"
    body = f"""
    .reg .f32 %f<64>;
    mov.u32 %r1, tile; mad.lo.u32 %r2, %r60, 64, %r1; mul.wide.u32 %d10, %r60, 64; add.u64 %d11, %d2, %d10;
    {"".join(copied.format(at=16 * k) for k in range(4))}
    mul.wide.u32 %d12, %r60, 16; add.u64 %d13, %d1, %d12; ld.global.v4.u32 {{%r10, %r11, %r12, %r13}}, [%d13];
    mul.wide.u32 %d14, %r60, {2 * N}; add.u64 %d15, %d0, %d14; {each("ld.global.f32 %f{e}, [%d15+{at}];")}
    fence.proxy.async.shared::cta; bar.sync 0; wgmma.fence.sync.aligned; mov.b64 %d20, {described};
    wgmma.mma_async.sync.aligned.m64n{N}k{K}.f32.{type}.{type} {{{sums_of}}}, {{%r10, %r11, %r12, %r13}}, %d20, {signs};
    wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; {each("st.global.f32 [%d15+{at}], %f{e};")}"""
    text = kernel(body, 3, ".shared .align 1024 .b8 tile[8192];\n")
    load(text).launch("k", 1, 128, [sums, registers, memory])
    expected = d + a @ b
    assert all((sums[:, :, e] == expected[place]).all() for e, place in enumerate(places))


@pytest.mark.parametrize("size", [4, 8, 16])
def test_asynchronous_copies_fill_up_with_zeros(size):
    data, result = RNG.integers(0, 256, 32 * size, dtype=np.uint8), np.zeros(32 * size, np.uint8)
    vector = {4: ("b32", "%r10"), 8: ("v2.b32", "{%r10, %r11}"), 16: ("v4.b32", "{%r10, %r11, %r12, %r13}")}[size]
    body = f"""
    mul.wide.u32 %d10, %r60, {size}; add.u64 %d11, %d1, %d10; mov.u32 %r1, tile; mad.lo.u32 %r2, %r60, {size}, %r1;
    setp.lt.u32 %p1, %r60, 16; selp.b32 %r3, {size}, 2, %p1;
    cp.async.{"cg" if size == 16 else "ca"}.shared.global.L2::128B [%r2+0], [%d11+0], {size}, %r3;
    cp.async.commit_group; cp.async.wait_group 0;
    ld.shared.{vector[0]} {vector[1]}, [%r2]; add.u64 %d12, %d0, %d10; st.global.{vector[0]} [%d12], {vector[1]};"""
    done = load(kernel(body, 2, ".shared .align 16 .b8 tile[512];\n")).launch("k", 1, 32, [result, data])
    expected = data.reshape(32, size).copy()
    expected[16:, 2:] = 0
    assert (result.reshape(32, size) == expected).all()
    assert done.bytes_read == 16 * size + 16 * 2


# ---- Lanes with each other ----


def test_shuffles():
    for mode, b, model in [
        ("bfly", 5, lambda l: l ^ 5),
        ("up", 3, lambda l: l - 3 if l % 16 >= 3 else None),
        ("down", 3, lambda l: l + 3 if l % 16 < 13 else None),
        ("idx", 7, lambda l: l // 16 * 16 + 7),
    ]:
        out = np.zeros((32, 2), np.uint32)
        clamp = {"up": 0x1000, "bfly": 0x1F}.get(mode, 0x100F)
        body = f"""
        mad.lo.u32 %r1, %r60, 10, 1; shfl.sync.{mode}.b32 %r2|%p1, %r1, {b}, {clamp}, -1; selp.u32 %r3, 1, 0, %p1;
        add.u64 %d10, %d0, %d60; st.global.v2.u32 [%d10], {{%r2, %r3}};"""
        load(kernel(body, 1)).launch("k", 1, 32, [out])
        for lane in range(32):
            source = model(lane)
            assert tuple(out[lane]) == (10 * (lane if source is None else source) + 1, int(source is not None))


def test_votes_reductions_and_matches():
    signed = RNG.integers(-(2**31), 2**31, 32)
    data = signed.astype(np.int32).view(np.uint32)
    bits = [int(x) for x in data]
    expected = {
        "redux.sync.add.s32": sum(bits), "redux.sync.add.u32": sum(bits), "redux.sync.min.s32": int(signed.min()),
        "redux.sync.max.s32": int(signed.max()), "redux.sync.min.u32": min(bits), "redux.sync.max.u32": max(bits),
    }  # fmt: skip
    for name, f in {"and": operator.and_, "or": operator.or_, "xor": operator.xor}.items():
        expected[f"redux.sync.{name}.b32"] = functools.reduce(f, bits)
    for opcode, value in expected.items():
        out = np.zeros((32, 2), np.uint32)
        body = f"""
        mul.wide.u32 %d10, %r60, 4; add.u64 %d11, %d1, %d10; ld.global.u32 %r1, [%d11]; {opcode} %r2, %r1, -1;
        add.u64 %d12, %d0, %d60; st.global.u32 [%d12], %r2;"""
        load(kernel(body, 2)).launch("k", 1, 32, [out, data])
        assert (out[:, 0] == value % 2**32).all(), opcode
    out = np.zeros((32, 8), np.uint32)
    body = """
    setp.lt.u32 %p1, %r60, 5; vote.sync.ballot.b32 %r1, %p1, -1; vote.sync.any.pred %p2, %p1, -1;
    vote.sync.all.pred %p3, %p1, -1; vote.sync.uni.pred %p4, !%p1, -1; selp.u32 %r2, 1, 0, %p2; selp.u32 %r3, 1, 0, %p3;
    selp.u32 %r4, 1, 0, %p4; and.b32 %r5, %r60, 3; match.any.sync.b32 %r6, %r5, -1; cvt.u64.u32 %d10, %r5;
    match.any.sync.b64 %r7, %d10, -1; @%p1 activemask.b32 %r8;
    mul.wide.u32 %d11, %r60, 32; add.u64 %d12, %d0, %d11;
    st.global.v4.u32 [%d12], {%r1, %r2, %r3, %r4}; st.global.v2.u32 [%d12+16], {%r6, %r7};
    @%p1 st.global.u32 [%d12+24], %r8;"""
    load(kernel(body, 1)).launch("k", 1, 32, [out])
    for lane in range(32):
        same = 0x11111111 << lane % 4
        assert out[lane].tolist() == [31, 1, 0, 0, same, same, 31 if lane < 5 else 0, 0]


@pytest.mark.parametrize(("operation", "value"), [("popc.u32", 40), ("and.pred", 0), ("or.pred", 1)])
def test_barriers_that_reduce(operation, value):
    out = np.zeros(THREADS, np.uint64)
    d = "%r1" if operation.startswith("popc") else "%p2"
    body = f"""
    setp.lt.u32 %p1, %r60, 40; bar.red.{operation} {d}, 0, %p1; {"" if d == "%r1" else "selp.u32 %r1, 1, 0, %p2;"}
    add.u64 %d10, %d0, %d60; st.global.u32 [%d10], %r1;"""
    load(kernel(body, 1)).launch("k", 1, THREADS, [out])
    assert (out == value).all()


# ---- Tensor cores ----

MMA = [
    ("m16n8k4", "tf32", "f32"), ("m16n8k8", "tf32", "f32"), ("m16n8k8", "bf16", "f32"), ("m16n8k16", "bf16", "f32"),
    ("m16n8k8", "f16", "f32"), ("m16n8k16", "f16", "f32"), ("m16n8k16", "f16", "f16"), ("m16n8k16", "s8", "s32"),
    ("m16n8k32", "s8", "s32"), ("m16n8k32", "u8", "s32"), ("m8n8k4", "f64", "f64"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "kind", "accumulator"), MMA)
def test_mma(shape, kind, accumulator):
    """Fragments gathered by the layouts of the PTX ISA, spelled element by element."""
    M, N, K = map(int, re.findall(r"\d+", shape))
    size = {"tf32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "f64": 8}[kind]
    per = max(4 // size, 1)
    a, b, c = (RNG.integers(0 if kind == "u8" else -8, 9, s).astype(np.float64) for s in ((M, K), (K, N), (M, N)))
    if kind == "tf32":
        a, b = a + 2.0**-8, b + 2.0**-20  # some have bits that tensor cores drop
    held = "f32" if kind == "tf32" else kind

    def registers(elements: list[float], type: str, group: int) -> list[int]:
        bits = [int(x) & ((1 << 8 * width(type)) - 1) for x in to_bits(type, elements)]
        return [
            sum(x << 8 * width(type) * i for i, x in enumerate(bits[k : k + group])) for k in range(0, len(bits), group)
        ]

    def rows_of_c(lane):
        if kind == "f64":
            return [(lane // 4, 2 * (lane % 4) + e) for e in range(2)]
        return [(lane // 4 + 8 * (e // 2), 2 * (lane % 4) + e % 2) for e in range(4)]

    words = []
    half = 2 if accumulator == "f16" else 1
    for lane in range(32):
        g, t = lane // 4, lane % 4
        in_a = [
            (g + 8 * (r % 2), t * per + e + 4 * per * (r // 2)) for r in range(M * K // 32 // per) for e in range(per)
        ]
        in_b = [(t * per + e + 4 * per * r, g) for r in range(K * N // 32 // per) for e in range(per)]
        words.append(
            registers([a[i] for i in in_a], held, per) + registers([b[i] for i in in_b], held, per)
            + registers([c[i] for i in rows_of_c(lane)], accumulator, half)
        )  # fmt: skip
    n_a, n_b, n_c = M * K // 32 // per, K * N // 32 // per, len(rows_of_c(0)) // half
    count = n_a + n_b + n_c
    wide = kind == "f64"
    data = np.array(words, np.uint64)
    result = np.zeros((32, n_c), np.uint64)
    R = "%d" if wide else "%r"
    loads = "\n".join(f"ld.global.{'u64' if wide else 'u32'} {R}{20 + k}, [%d11+{8 * k}];" for k in range(count))
    group = lambda first, n: "{" + ", ".join(f"{R}{20 + k}" for k in range(first, first + n)) + "}"  # noqa: E731
    outs = "{" + ", ".join(f"{R}{40 + k}" for k in range(n_c)) + "}"
    stores = "\n".join(f"st.global.{'u64' if wide else 'u32'} [%d12+{8 * k}], {R}{40 + k};" for k in range(n_c))
    body = f"""
    mul.wide.u32 %d10, %r60, {8 * count}; add.u64 %d11, %d1, %d10; {loads}
    mma.sync.aligned.{shape}.row.col.{accumulator}.{kind}.{kind}.{accumulator}
        {outs}, {group(0, n_a)}, {group(n_a, n_b)}, {group(n_a + n_b, n_c)};
    mul.wide.u32 %d10, %r60, {8 * n_c}; add.u64 %d12, %d0, %d10; {stores}"""
    load(kernel(body, 2)).launch("k", 1, 32, [result, data])
    if kind == "tf32":
        a, b = truncated(a), truncated(b)
    expected = a @ b + c
    for lane in range(32):
        bits = [int(x) >> (16 * i) & 0xFFFF if half == 2 else int(x) for x in result[lane] for i in range(half)]
        got = from_bits(accumulator, np.array(bits, np.uint64))
        assert got == [np.float32(expected[i]) if accumulator == "f32" else expected[i] for i in rows_of_c(lane)]


def truncated(x):
    return (np.float32(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


# ---- Control ----


def test_loops_and_divergence_meet_again():
    """Each lane loops as often as its number says, then all shuffle."""
    out = np.zeros(THREADS, np.uint64)
    body = """
    mov.u32 %r1, 0; mov.u32 %r2, 0;
loop: setp.ge.u32 %p1, %r1, %r60; @%p1 bra done; add.u32 %r2, %r2, %r1; add.u32 %r1, %r1, 1; bra.uni loop;
done: shfl.sync.bfly.b32 %r3, %r2, 1, 31, 0xffffffff;
    and.b32 %r4, %r60, 1; setp.eq.u32 %p2, %r4, 0; @%p2 bra even; add.u32 %r3, %r3, 1000; bra join;
even: add.u32 %r3, %r3, 2000;
join: add.u64 %d10, %d0, %d60; st.global.u32 [%d10], %r3; @%p2 exit; add.u32 %r3, %r3, 1; st.global.u32 [%d10], %r3;"""
    load(kernel(body, 1)).launch("k", 1, THREADS, [out])
    for t in range(THREADS):
        other = t ^ 1
        assert out[t] == other * (other - 1) // 2 + (1001 if t % 2 else 2000)


def test_branch_by_index():
    out = np.zeros(THREADS, np.uint64)
    body = """
    and.b32 %r1, %r60, 3;
table: .branchtargets zero, one, two, one;
    brx.idx %r1, table;
zero: mov.u32 %r2, 5; bra join;
one: mov.u32 %r2, 6; bra join;
two: mov.u32 %r2, 7;
join: add.u64 %d10, %d0, %d60; st.global.u32 [%d10], %r2;"""
    load(kernel(body, 1)).launch("k", 1, THREADS, [out])
    assert out.tolist() == [(5, 6, 7, 6)[t % 4] for t in range(THREADS)]


def test_special_registers():
    out = np.zeros((2 * 3, 64, 4), np.uint32)
    body = """
    mov.u32 %r1, %tid.y; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x; mad.lo.u32 %r3, %r1, %r2, %r3;
    mov.u32 %r4, %ctaid.y; mov.u32 %r5, %nctaid.x; mov.u32 %r6, %ctaid.x; mad.lo.u32 %r6, %r4, %r5, %r6;
    mad.lo.u32 %r7, %r6, 64, %r3; mul.wide.u32 %d10, %r7, 16; add.u64 %d11, %d0, %d10;
    mov.u32 %r8, %laneid; mov.u32 %r9, %warpid; mov.u32 %r10, %lanemask_lt; mov.u32 %r11, %clock; membar.gl;
    st.global.v4.u32 [%d11], {%r8, %r9, %r10, %r11};"""
    load(kernel(body, 1)).launch("k", (2, 3), (16, 4), [out])
    for t in range(64):
        assert (out[:, t] == [t % 32, t // 32, 2 ** (t % 32) - 1, 0]).all()


def test_calls_and_arguments():
    """A called function with a loop of its own, and arguments of every type."""
    text = f"""{HEAD}
.func (.param .b32 back) add_times(.param .b32 a, .param .align 4 .b8 pair[8])
{{
    .reg .b32 %r<9>; .reg .pred %p<2>;
    ld.param.u32 %r1, [a]; ld.param.u32 %r2, [pair+4]; mov.u32 %r3, 0;
again: setp.eq.u32 %p1, %r2, 0; @%p1 bra out; add.u32 %r3, %r3, %r1; sub.u32 %r2, %r2, 1; bra again;
out: st.param.b32 [back+0], %r3; ret;
}}
.visible .entry k(
    .param .u64 .ptr .global .align 8 p, .param .u32 n, .param .f32 x, .param .align 4 .b8 s[12], .param .u8 q
)
{{
    .reg .b32 %r<9>; .reg .b64 %d<9>; .reg .f32 %f<3>;
    ld.param.u64 %d1, [p]; mov.u32 %r1, %tid.x; mul.wide.u32 %d2, %r1, 16; add.u64 %d3, %d1, %d2;
    ld.param.u32 %r2, [n]; ld.param.f32 %f1, [x]; ld.param.u32 %r3, [s+8]; ld.param.u8 %r6, [q];
    {{ .param .b32 param0; st.param.b32 [param0+0], %r2; .param .align 4 .b8 param1[8]; st.param.b32 [param1+4], %r1;
    .param .b32 retval0; call.uni (retval0), add_times, (param0, param1); ld.param.b32 %r4, [retval0+0]; }}
    cvt.rzi.s32.f32 %r5, %f1;
    st.global.v4.u32 [%d3], {{%r4, %r3, %r5, %r6}};
    ret;
}}"""
    out = np.zeros((32, 4), np.uint32)
    load(text).launch("k", 1, 32, [out, 7, 3.5, np.arange(3, dtype=np.int32).tobytes(), 300 % 256])
    for t in range(32):
        assert out[t].tolist() == [7 * t, 2, 3, 44]


def test_scopes_of_inline_assembly():
    out = np.zeros(THREADS, np.uint64)
    body = """
    mov.u32 %r1, 1;
    { .reg .b32 %r1; .reg .pred q; .reg .b32 t<3>; mov.b32 t1, %r60; mov.u32 %r1, 50; setp.lt.u32 q, t1, 4;
      @q mov.u32 %r2, 3;
      @!q mov.u32 %r2, %r1; }
    { .reg .b32 t<3>; mov.b32 t1, %r2; add.u32 %r3, t1, %r1; }
    add.u64 %d10, %d0, %d60; st.global.u32 [%d10], %r3;"""
    load(kernel(body, 1)).launch("k", 1, THREADS, [out])
    assert out.tolist() == [4 if t < 4 else 51 for t in range(THREADS)]


ELSEWHERE = """
pack unpack ld st ldmatrix stmatrix cp.async cp.async.commit_group cp.async.wait_group cp.async.wait_all shfl.b32 bar
bar.warp bra brx exit nop trap activemask.b32 match.any.b32 match.any.b64 atom.cas.u16 atom.exch.u16
""".split()


def test_every_instruction_is_tested_here():
    names: list[str] = []
    for opcode, (out, ins, _, options) in CASES.items():
        module = parse(elementwise_ptx(opcode, out, ins, options.get("immediates", "")))
        decode(module, module.functions["k"], lambda name: names.append(name) or 0)
    by_prefix = (
        "redux.",
        "vote.",
        "mma.",
        "wgmma.",
        "add.cc.",
        "addc",
        "sub.cc.",
        "subc",
        "mad.lo.cc.",
        "mad.hi.cc.",
        "madc.",
        "atom.",
    )
    left = set(instructions()) - set(names) - set(ELSEWHERE)
    assert {name for name in left if not name.startswith(by_prefix)} == set()
