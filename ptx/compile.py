"""Kernels compiled ahead of time, without a GPU: Triton and nvcc to PTX, and what ptxas makes of it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from .run import kept


@dataclass(frozen=True)
class Compiled:
    """`text` is PTX, or AMD's assembly for gfx targets. `shared` goes to Module.launch. `source` is Triton's IR."""

    text: str
    shared: int
    binary: bytes
    name: str
    source: str


@cache
def tool(name: str) -> str | None:
    """A CUDA tool on PATH or that Triton brings."""
    if found := shutil.which(name):
        return found
    spec = importlib.util.find_spec("triton")
    if spec is None or not spec.submodule_search_locations:
        return None
    brought = Path(spec.submodule_search_locations[0]) / "backends" / "nvidia" / "bin" / name
    return str(brought) if brought.exists() else None


def missing(name: str) -> str | None:
    """Why triton, nvcc, ptxas, cuobjdump or nvdisasm cannot be used, in words."""
    if name == "triton":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return "TRITON_INTERPRET is set: kernels are interpreted, not compiled"
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    return None if tool(name) else f"{name} is neither on PATH nor in triton"


# ---- Triton ----


def compile_triton(
    kernel,
    signature: Mapping[str, str],
    constants: Mapping[str, object],
    *,
    target: str = "sm_80",
    warps: int = 4,
    stages: int = 3,
    divisible: Sequence[str] | None = None,
    assembled: bool = True,
    **options,
) -> Compiled:
    """A @triton.jit function for sm_80, sm_90, sm_100 or gfx942.

    signature: the types of the arguments that stay ("*fp32", "i32"...); constants: the tl.constexpr ones and their
    values. divisible: arguments that are multiples of 16; None: all pointers, as a launch on a GPU would find them.
    assembled: whether ptxas runs too; the PTX machine does not need what it makes.
    """
    if divisible is None:
        divisible = [name for name, type in signature.items() if type.startswith("*")]
    request = (dict(signature), dict(constants), target, warps, stages, tuple(divisible), options)
    if not target.startswith("gfx"):
        with nullcontext() if assembled else without_ptxas():
            return triton_here(kernel, *request)
    # An error in AMD's compiler may end the process.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(triton_by_name, kernel.fn.__module__, kernel.fn.__code__.co_filename, kernel.fn.__qualname__,
                           *request).result()  # fmt: skip


@contextmanager
def without_ptxas() -> Iterator[None]:
    """Triton stops at the PTX, and keeps it in its cache apart from what was compiled to the end."""
    from triton import knobs

    def hook(backend=None, stages=None, *rest):
        if stages is None:
            return "without ptxas", "without ptxas"
        stages["cubin"] = lambda ptx, metadata: b""

    before, knobs.runtime.add_stages_inspection_hook = knobs.runtime.add_stages_inspection_hook, hook
    try:
        yield
    finally:
        knobs.runtime.add_stages_inspection_hook = before


def triton_by_name(module: str, file: str, name: str, *request) -> Compiled:
    try:
        found = importlib.import_module(module)
    except ImportError:
        spec = importlib.util.spec_from_file_location(module, file)
        found = sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    return triton_here(getattr(found, name), *request)


def triton_here(kernel, signature, constants, target, warps, stages, divisible, options) -> Compiled:
    order = list(kernel.arg_names)
    signature = {n: signature.get(n, "constexpr") for n in order}
    attrs = {(order.index(n),): [["tt.divisibility", 16]] for n in divisible}
    options = {"num_warps": warps, "num_stages": stages, **options}
    return triton_compiled(kernel, signature, dict(constants), attrs, options, target)


def triton_compiled(kernel, signature, constants, attrs, options, target: str) -> Compiled:
    import triton
    from triton.compiler import ASTSource

    done = triton.compile(ASTSource(kernel, signature, constants, attrs), target=gpu_of(target), options=options)
    text, binary = ("amdgcn", "hsaco") if target.startswith("gfx") else ("ptx", "cubin")
    return Compiled(done.asm[text], done.metadata.shared, done.asm[binary], done.metadata.name, done.asm["ttir"])


def gpu_of(target: str):
    from triton.backends.compiler import GPUTarget

    return (
        GPUTarget("hip", target, 64)
        if target.startswith("gfx")
        else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    )


@dataclass(frozen=True)
class Variant:
    """What Triton's JIT compiles for a launch. A kernel is compiled once for each `key`."""

    kernel: object
    key: str
    signature: dict
    constants: dict
    attrs: dict
    options: dict
    target: str
    values: dict  # of all parameters

    def compiled(self, assembled: bool = True) -> Compiled:
        """In this process, which an error in AMD's compiler may end. Unless assembled, without ptxas."""
        with nullcontext() if assembled else without_ptxas():
            return triton_compiled(self.kernel, self.signature, self.constants, self.attrs, self.options, self.target)

    def arguments(self) -> dict[str, object]:
        """What the compiled kernel is given, in its order: tuples are flat, and constants are left out."""
        each = ((name, type, self.values[name]) for name, type in self.signature.items())
        return {name: value for parameter in each for name, value in members(*parameter)}


def members(name: str, type: str | tuple, value) -> Iterator[tuple[str, object]]:
    if isinstance(type, tuple):
        for field, *member in zip(getattr(type, "_fields", range(len(type))), type, value, strict=True):
            yield from members(f"{name}.{field}", *member)
    elif type != "constexpr":
        yield name, value


def variant(kernel, values: Sequence, named: Mapping[str, object], target: str = "sm_80") -> Variant:
    """Of a launch `kernel[grid](*values, **named)`, by the JIT itself."""
    from triton.compiler import make_backend
    from triton.runtime.jit import compute_cache_key, create_function_from_signature

    backend = make_backend(gpu_of(target))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*values, **named)
    key = compute_cache_key({}, specialization, options)
    options, signature, constants, attrs = kernel._pack_args(backend, named, bound, specialization, options)
    return Variant(kernel, key, signature, constants, attrs, options.__dict__, target, bound)


# ---- CUDA C++ ----


def compile_cuda(source: str, *, target: str = "sm_80", options: Sequence[str] = ()) -> str:
    """The PTX of CUDA C++, with source lines."""
    if reason := missing("nvcc"):
        raise RuntimeError(reason)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cu")
        file.write_text(source)
        return nvcc_ptx(file, target, options)


def nvcc_ptx(file: Path, target: str, options: Sequence[str]) -> str:
    out = file.with_suffix(".ptx")
    command = [tool("nvcc"), "-ptx", f"-arch={target}", "-lineinfo", "-std=c++17", *options, str(file), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvcc: {done.stderr}")
    return out.read_text()


def sources_of(file: Path) -> list[Path]:
    return [f for f in sorted(file.parents[1].rglob("*")) if f.suffix in (".cu", ".cuh", ".h")]


def compile_file(file: Path, *, target: str = "sm_80", options: Sequence[str] = (), change=lambda text: text) -> str:
    """The PTX of a .cu file and the headers around it, each changed by `change`; kept by a hash of them all."""
    texts = {f.relative_to(file.parents[1]): change(f.read_text()) for f in sources_of(file)}

    def make() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in texts.items():
                Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
                Path(folder, name).write_text(text)
            return nvcc_ptx(Path(folder, file.relative_to(file.parents[1])), target, options).encode()

    return kept(f"{file.stem}-{{}}.ptx", (sorted(texts.items()), target, options), make).decode()


# ---- What a library has in it ----

HEAD = re.compile(r"^(?:\.\w+ )*\.(entry|func)\s*(?:\([^)]*\)\s*)?([\w$]+)", re.M)
BRACKET = re.compile(r"[{};]")
CALLED = re.compile(r"\b_Z[\w$]+")


def kernels_in(library: Path, target: str = "sm_80") -> dict[str, str]:
    """The PTX for a target that a library was linked with: of each kernel by its name; of a library without kernels,
    which the tool calls an error, none."""
    if reason := missing("cuobjdump"):
        raise RuntimeError(reason)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([tool("cuobjdump"), "-xptx", "all", str(library)], cwd=folder, capture_output=True)
        texts = [file.read_text() for file in sorted(Path(folder).glob(f"*.{target}.ptx"))]
    return {name: text for whole in texts for name, text in apart(whole).items()}


def apart(ptx: str) -> dict[str, str]:
    """Each kernel by itself, with the functions that it calls."""
    bodies, kernels, rest, at = {}, [], [], 0
    for head in HEAD.finditer(ptx):
        end = end_of(ptx, head.end())
        rest.append(ptx[at : head.start()])
        at = end
        if ptx[end - 1] == "}":  # else a declaration
            bodies[head[2]] = ptx[head.start() : end]
            kernels += [head[2]] * (head[1] == "entry")
    rest.append(ptx[at:])
    calls = {name: bodies.keys() & set(CALLED.findall(body)) for name, body in bodies.items()}

    def reached(name: str, known: set[str]) -> set[str]:
        for other in calls[name] - known:
            known |= reached(other, known | {other})
        return known

    needed = {kernel: reached(kernel, {kernel}) for kernel in kernels}
    own = lambda kernel: [body for name, body in bodies.items() if name in needed[kernel]]  # noqa: E731
    return {kernel: "\n".join(["".join(rest), *own(kernel)]) for kernel in kernels}


def end_of(ptx: str, start: int) -> int:
    """Of a function or a declaration whose head is there."""
    depth = 0
    for m in BRACKET.finditer(ptx, start):
        depth += {"{": 1, "}": -1}.get(m[0], 0)
        if depth == 0:
            return m.end()
    raise ValueError("a function without an end")


# ---- What ptxas makes of it ----


@dataclass(frozen=True)
class Resources:
    registers: int
    stack: int  # bytes a thread
    spill_stores: int  # bytes a thread, in the code
    spill_loads: int
    shared: int  # bytes, the static ones


def assemble(ptx: str, target: str = "sm_80") -> tuple[bytes, dict[str, Resources]]:
    """The cubin and each kernel's resources."""
    if reason := missing("ptxas"):
        raise RuntimeError(reason)

    def make() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            file, out = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
            file.write_text(ptx)
            command = [tool("ptxas"), "-v", f"-arch={target}", str(file), "-o", str(out)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"ptxas: {done.stderr}")
            return pickle.dumps((out.read_bytes(), done.stderr))

    cubin, report = pickle.loads(kept("assembled-{}.pickle", (ptx, target, ptxas_version()), make))
    return cubin, read_resources(report)


@cache
def ptxas_version() -> str:
    return subprocess.run([tool("ptxas"), "--version"], capture_output=True, text=True, check=True).stdout


def read_resources(report: str) -> dict[str, Resources]:
    resources = {}
    pattern = r"Compiling entry function '([^']+)'(.*?)Used (\d+) registers([^\n]*)"
    for name, middle, registers, rest in re.findall(pattern, report, re.S):
        number = lambda text, what: int(next(iter(re.findall(rf"(\d+) bytes {what}", text)), 0))  # noqa: E731
        resources[name] = Resources(
            int(registers),
            number(middle, "stack"),
            number(middle, "spill stores"),
            number(middle, "spill loads"),
            number(rest, "smem"),
        )
    return resources


def machine_instructions(cubin: bytes) -> Counter[str]:
    """How often each machine instruction stands in the code: HMMA, LDGSTS, LDL (a spill)..."""
    if reason := missing("nvdisasm"):
        raise RuntimeError(reason)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        text = subprocess.run([tool("nvdisasm"), "-c", str(file)], capture_output=True, text=True, check=True).stdout
    return Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", text))
