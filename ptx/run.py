"""Executing PTX on the CPU: load(text).launch(kernel, grid, block, arguments)."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import pickle
import shutil
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .decode import GLOBAL, PARAM, Program, decode, initial_bytes
from .parse import Location, Variable, parse, width
from .parse import Module as Parsed

HERE = Path(__file__).parent
SOURCES = ("instructions.cpp", "machine.cpp")
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-frounding-math", "-ffp-contract=off", "-Wall", "-Wextra")
CACHE = HERE.parent / ".pytest_cache" / "d" / "ptx"
WEEK = 7 * 24 * 3600  # seconds

COUNT = np.dtype(
    [(n, np.uint64) for n in "warps threads requests bytes sectors ideal_sectors passes ideal_passes".split()]
)
REGION = np.dtype([(n, np.uint64) for n in "begin end read written unique_read unique_written".split()])
FINDING = np.dtype(
    [(n, np.int32) for n in "kind pc other_pc block thread other_block other_thread region size reserved".split()]
    + [("address", np.uint64), ("count", np.uint64)]
)
KINDS = (
    "out of bounds", "misaligned", "race", "write race", "uninitialised", "unwaited copy", "divergent barrier",
    "divergent warp", "deadlock", "endless", "trap",
)  # fmt: skip
SCHEDULES = ("round_robin", "ahead", "reverse", "random")
MOST_FINDINGS = 1000


class Launch(ctypes.Structure):
    """ptx::Launch"""

    _fields_ = [
        *[
            (n, ctypes.c_void_p)
            for n in "code operands constant_slots constants params regions counts findings".split()
        ],
        *[(n, ctypes.c_int32) for n in "length slots n_constants n_params n_regions max_findings n_findings".split()],
        ("grid", ctypes.c_int32 * 3),
        ("block", ctypes.c_int32 * 3),
        *[(n, ctypes.c_int32) for n in "shared_bytes local_bytes granule schedule seed reserved".split()],
        ("max_steps", ctypes.c_uint64),
    ]


# ---- The machine, built once ----


def missing() -> str | None:
    """Why PTX cannot be executed here, in words."""
    return None if shutil.which(os.environ.get("CXX", "g++")) else "no g++ to build the PTX machine with"


def compiled(folder: Path, compiler: str) -> Path:
    """The machine's library, built in a folder."""
    sources = [HERE / name for name in SOURCES]
    objects = [folder / f"{name}.o" for name in SOURCES]
    commands = [[compiler, *FLAGS, "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True)]
    library = folder / "machine.so"
    link = [compiler, "-shared", "-o", str(library), *map(str, objects)]
    with ThreadPoolExecutor() as pool:
        run = functools.partial(subprocess.run, capture_output=True, text=True)
        for done in (*pool.map(run, commands), run(link)):
            if done.returncode:
                raise RuntimeError(f"the PTX machine does not build:\n{done.stderr}")
    return library


@functools.cache
def built() -> Path | RuntimeError:
    """The library, kept by a hash of all that it is made of. An error is kept too: no test waits for it again."""
    if reason := missing():
        return RuntimeError(reason)
    compiler = os.environ.get("CXX", "g++")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    text = [(HERE / name).read_bytes() for name in (*SOURCES, "machine.h")]
    key = hashlib.sha256(b"\0".join([version.encode(), " ".join(FLAGS).encode(), *text])).hexdigest()[:16]
    folder = CACHE if writable(CACHE) else Path(tempfile.mkdtemp())
    library = folder / f"machine-{key}.so"
    with alone(library), tempfile.TemporaryDirectory(dir=folder) as work:
        try:
            if not library.exists():
                os.replace(compiled(Path(work), compiler), library)
        except RuntimeError as error:
            return error
    return library


@functools.cache
def without_old_ones() -> None:
    """The core's PTX and what was read of PTX are large, and others after each change of a kernel."""
    for file in (*CACHE.glob("core-*"), *CACHE.glob("read-*")):
        with suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > WEEK:
                file.unlink()


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Of several processes that want a file of the cache one makes it, and the others wait for it."""
    with open(f"{file}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def kept(name: str, of: object, make: Callable[[], bytes]) -> bytes:
    """What `make` makes, from a file of the cache that is named after all that it is made of."""
    file = CACHE / name.format(hashlib.sha256(repr(of).encode()).hexdigest()[:16])
    try:
        return file.read_bytes()
    except FileNotFoundError:
        if not writable(CACHE):
            return make()
        without_old_ones()
    with alone(file), tempfile.TemporaryDirectory(dir=CACHE) as work:
        if not file.exists():
            whole = Path(work, file.name)
            whole.write_bytes(make())
            os.replace(whole, file)
    return file.read_bytes()


@functools.cache
def machine() -> ctypes.CDLL:
    library = built()
    if isinstance(library, RuntimeError):
        raise library
    lib = ctypes.CDLL(str(library))
    lib.ptx_names.restype = ctypes.c_char_p
    lib.ptx_launch.argtypes = [ctypes.POINTER(Launch)]
    lib.ptx_launch.restype = None
    return lib


@functools.cache
def handler(name: str) -> int:
    return machine().ptx_handler(name.encode())


def instructions() -> list[str]:
    """The canonical names of all that is known."""
    return machine().ptx_names().decode().split()


# ---- What a launch gives back ----


@dataclass(frozen=True)
class Finding:
    """Something wrong, or that hardware may do otherwise: `kind` is one of KINDS."""

    kind: str
    location: Location
    opcode: str
    message: str
    count: int
    other: Location | None = None

    def __str__(self) -> str:
        return f"{self.kind} at {self.location} ({self.opcode}): {self.message}"


class PtxFailure(AssertionError):
    """A launch with findings; `result` is what it gave."""

    def __init__(self, result: Result):
        self.result = result
        shown = [str(f) for f in result.findings[:8]]
        more = len(result.findings) - len(shown)
        super().__init__(
            "\n".join([f"{result.kernel}: {len(result.findings)} findings", *shown] + [f"and {more} more"] * (more > 0))
        )


@dataclass(frozen=True)
class Line:
    """What one instruction did over the launch. Requests are a warp's; passes are those of shared memory."""

    location: Location
    opcode: str
    warps: int
    threads: int
    requests: int
    bytes: int
    sectors: int
    ideal_sectors: int
    passes: int
    ideal_passes: int

    def __add__(self, other: Line) -> Line:
        return replace(self, **{n: getattr(self, n) + getattr(other, n) for n in COUNT.names})

    @property
    def sectors_per_request(self) -> float:
        return self.sectors / self.requests if self.requests else 0.0

    @property
    def bank_conflicts(self) -> int:
        """Passes beyond those that a request without conflicts takes."""
        return self.passes - self.ideal_passes


class Traffic(NamedTuple):
    """Bytes of global memory: as requested, and of different addresses."""

    read: int
    written: int
    unique_read: int
    unique_written: int


def traffic(regions: np.ndarray, address: int) -> Traffic:
    (region,) = regions[(regions["begin"] <= address) & (address < regions["end"])]
    return Traffic(*(int(region[name]) for name in Traffic._fields))


@dataclass(frozen=True)
class Result:
    """Counts are exact for this launch. Bytes are of global memory: as requested, and of different addresses."""

    program: Program
    counts: np.ndarray  # of COUNT, for each instruction
    findings: list[Finding]
    bytes_read: int
    bytes_written: int
    unique_bytes_read: int
    unique_bytes_written: int
    by_array: dict[str, Traffic]  # "argument 0" and so on; arrays that overlap have the same

    @property
    def kernel(self) -> str:
        return self.program.name

    @functools.cached_property
    def lines(self) -> list[Line]:
        rows = zip(self.program.locations, self.program.opcodes, self.counts.tolist(), strict=True)
        return [Line(location, opcode, *numbers) for location, opcode, numbers in rows]

    def by_source(self) -> list[Line]:
        """The lines summed by source line and opcode; without .loc, every instruction by itself."""
        sums: dict[tuple, Line] = {}
        for line in self.lines:
            key = (line.location.frames or line.location.ptx_line, line.opcode)
            sums[key] = sums[key] + line if key in sums else line
        return list(sums.values())

    def total(self, name: str) -> int:
        return int(self.counts[name].sum())

    @property
    def requests(self) -> int:
        """Of global memory."""
        return int(self.counts["requests"][self.counts["sectors"] > 0].sum())

    @property
    def sectors(self) -> int:
        return self.total("sectors")

    @property
    def ideal_sectors(self) -> int:
        return self.total("ideal_sectors")

    @property
    def sectors_per_request(self) -> float:
        return self.sectors / self.requests if self.requests else 0.0

    @property
    def bank_conflicts(self) -> int:
        return self.total("passes") - self.total("ideal_passes")

    @property
    def instructions(self) -> dict[str, int]:
        """Executed warp instructions by opcode, the most frequent first."""
        counts: dict[str, int] = {}
        for opcode, warps in zip(self.program.opcodes, self.counts["warps"].tolist(), strict=True):
            counts[opcode] = counts.get(opcode, 0) + warps
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    def count(self, prefix: str) -> int:
        """Executed warp instructions whose opcode begins so."""
        return sum(n for opcode, n in self.instructions.items() if opcode.startswith(prefix))

    def kinds(self) -> set[str]:
        return {finding.kind for finding in self.findings}

    def __str__(self) -> str:
        rows = [
            f"{self.kernel}: {self.total('warps')} warp instructions, global read {self.bytes_read} "
            f"({self.unique_bytes_read} unique) and written {self.bytes_written} ({self.unique_bytes_written} unique) "
            f"bytes, {self.sectors_per_request:.2f} sectors a request, {self.bank_conflicts} bank conflicts"
        ]
        for line in self.by_source():
            if line.requests:
                served = [f"{line.sectors} sectors (at best {line.ideal_sectors})"] if line.sectors else []
                passed = [f"{line.passes} passes (at best {line.ideal_passes})"] if line.passes else []
                text = ", ".join([f"{line.requests} requests", f"{line.bytes} bytes", *served, *passed])
                rows.append(f"  {line.location}: {line.opcode}: {text}")
        return "\n".join(rows + [f"  {finding}" for finding in self.findings])


# ---- Arguments ----


def extent(array) -> tuple[int, int] | None:
    """Where a numpy array or torch CPU tensor lies, first byte and end; None for anything else."""
    if isinstance(array, np.ndarray):
        if array.size == 0:
            return array.ctypes.data, array.ctypes.data
        low, high = np.lib.array_utils.byte_bounds(array)
        return low, high
    if hasattr(array, "data_ptr"):
        if array.device.type != "cpu":
            raise ValueError(f"a tensor on {array.device} cannot be an argument: PTX is executed on the CPU")
        start, size = array.data_ptr(), array.element_size()
        if array.numel() == 0:
            return start, start
        return start, start + size * (1 + sum((n - 1) * s for n, s in zip(array.shape, array.stride(), strict=True)))
    return None


def pointer(array) -> int:
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr()


def param_bytes(v: Variable, value) -> bytes:
    if extent(value) is not None:
        value = pointer(value)
    if isinstance(value, bytes):
        if len(value) != v.size:
            raise ValueError(f"parameter {v.name} takes {v.size} bytes, given {len(value)}")
        return value
    scalar = v.type if v.size == width(v.type) else None
    if scalar is None:
        raise ValueError(f"parameter {v.name} is {v.size} bytes of {v.type}: give bytes, not {value!r}")
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        if v.type not in ("f32", "f64", "b32", "b64", "f16", "b16"):
            raise ValueError(f"parameter {v.name} is {v.type}, given the float {value}")
        return struct.pack({2: "<e", 4: "<f", 8: "<d"}[v.size], value)
    if v.type in ("f32", "f64"):
        return struct.pack({4: "<f", 8: "<d"}[v.size], value)
    return (int(value) % 2 ** (8 * v.size)).to_bytes(v.size, "little")


def merged(extents: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Overlapping ones as one: two arguments may show the same memory."""
    result: list[tuple[int, int]] = []
    for low, high in sorted(extents):
        if result and low < result[-1][1]:
            result[-1] = (result[-1][0], max(high, result[-1][1]))
        elif high > low:
            result.append((low, high))
    return result


def triple(sizes: int | Sequence[int]) -> tuple[int, int, int]:
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    return (*sizes, 1, 1)[:3]


@functools.cache
def reader() -> str:
    """What reads PTX: another parser, decoder or machine reads it anew."""
    texts = [(HERE / name).read_bytes() for name in ("parse.py", "decode.py")]
    return hashlib.sha256(b"\0".join([str(built()).encode(), *texts])).hexdigest()


SHORT = 20_000  # characters of a text that is read faster than a file


class Module:
    """PTX ready to be launched. Kernels are decoded when they are first asked for."""

    def __init__(self, text: str):
        self.text = text
        names = lambda: [f.name for f in self.parsed.functions.values() if f.is_kernel]  # noqa: E731
        self.variables, self.kernels = self.read("", lambda: (self.parsed.variables, names()))
        self.programs: dict[str, Program] = {}
        self.data: dict[str, np.ndarray] = {}
        for v in self.variables.values():
            if v.space in ("global", "const"):
                self.data[v.name] = np.zeros(v.size + 16, np.uint8)
        for v in self.variables.values():
            if v.name in self.data:
                self.data[v.name][: v.size] = np.frombuffer(initial_bytes(v, self.address), np.uint8)

    def address(self, name: str) -> int:
        """Of a module's variable, aligned to 16 bytes."""
        return -(-self.data[name].ctypes.data // 16) * 16 if name in self.data else 0

    @functools.cached_property
    def parsed(self) -> Parsed:
        return parse(self.text)

    def read(self, kernel: str, make: Callable[[], object]) -> object:
        """What `make` makes of the text; of a long one once, and kept."""
        if len(self.text) < SHORT:
            return make()
        packed = lambda: zlib.compress(pickle.dumps(make()), 1)  # noqa: E731
        return pickle.loads(zlib.decompress(kept("read-{}.pickle", (kernel, self.text, reader()), packed)))

    def program(self, kernel: str) -> Program:
        names = [k for k in self.kernels if k == kernel] or [k for k in self.kernels if kernel in k]
        if len(names) != 1:
            raise ValueError(f"kernel {kernel!r}: expected one of {self.kernels}")
        if names[0] not in self.programs:
            make = lambda: decode(self.parsed, self.parsed.functions[names[0]], handler)  # noqa: E731
            self.programs[names[0]] = self.read(names[0], make)
        return self.programs[names[0]]

    def launch(
        self,
        kernel: str,
        grid: int | Sequence[int],
        block: int | Sequence[int] | None,
        args: Sequence,
        *,
        shared: int = 0,
        schedule: str = "round_robin",
        findings: str = "raise",
        max_steps: int = 10**9,
        memory: Mapping[str, object] | None = None,
    ) -> Result:
        """Execute a kernel on the memory of its arguments.

        args: numpy arrays and torch CPU tensors (pointers), numbers, bytes (structures). Parameters that Triton adds
        at the end may be left out. block: None takes what the kernel was compiled for. shared: bytes of dynamic shared
        memory. schedule: round_robin, ahead, reverse, random or random:SEED. findings: "raise" or "return".
        memory: arrays by name that structures among the arguments point to.
        """
        program = self.program(kernel)
        block = program.threads if block is None else triple(block)
        if block is None:
            raise ValueError(f"{program.name} does not say its block size: give one")
        if program.threads and block != program.threads:
            raise ValueError(f"{program.name} was compiled for blocks of {program.threads}, not {block}")
        policy, _, seed = schedule.partition(":")
        if policy not in SCHEDULES:
            raise ValueError(f"schedule {schedule!r}: expected one of {', '.join(SCHEDULES)}, random:SEED")
        if findings not in ("raise", "return"):
            raise ValueError(f'findings {findings!r}: expected "raise" or "return"')
        absent = len(program.params) - len(args)
        if absent < 0 or absent > 2 or any(v.type != "u64" for v in program.params[len(args) :]):
            raise ValueError(f"{program.name} takes {len(program.params)} arguments, given {len(args)}")
        params = bytearray(program.param_bytes)
        for v, offset, value in zip(program.params, program.param_offsets, [*args, *[0] * absent], strict=True):
            params[offset : offset + v.size] = param_bytes(v, value)

        named = [(f"argument {k}", extent(a)) for k, a in enumerate(args) if extent(a) is not None]
        named += [(name, extent(a)) for name, a in (memory or {}).items()]
        variables = self.variables
        named += [(n, (self.address(n), self.address(n) + variables[n].size)) for n in self.data]
        extents = merged([e for _, e in named])
        regions = np.zeros(len(extents), REGION)
        regions["begin"], regions["end"] = [e[0] for e in extents], [e[1] for e in extents]

        constants = program.constants | {s: self.address(n) + offset for s, (n, offset) in program.globals.items()}
        slots = np.array(list(constants), np.int32)
        values = np.array(list(constants.values()), np.uint64)
        counts = np.zeros(len(program.code), COUNT)
        # Dynamic shared memory lies behind the static, aligned to 16.
        shared_bytes = -(-program.static_shared // 16) * 16 + shared if shared else program.static_shared
        found = np.zeros(MOST_FINDINGS, FINDING)
        raw = np.frombuffer(bytes(params) or b"\0", np.uint8)
        arrays = (program.code, program.operands, slots, values, raw, regions, counts, found)
        launch = Launch(
            *[a.ctypes.data for a in arrays], len(program.code), program.slots, len(constants), len(params),
            len(regions), MOST_FINDINGS, 0, triple(grid), block, shared_bytes, program.local_bytes,
            program.granule, SCHEDULES.index(policy), int(seed or 0), 0, max_steps,
        )  # fmt: skip
        machine().ptx_launch(launch)
        result = Result(
            program,
            counts,
            [self.finding(program, f, named, launch) for f in found[: launch.n_findings]],
            *[int(regions[n].sum()) for n in Traffic._fields],
            {name: traffic(regions, extent[0]) for name, extent in named if extent[0] < extent[1]},
        )
        if result.findings and findings == "raise":
            raise PtxFailure(result)
        return result

    def finding(self, program: Program, f: np.void, named: list, launch: Launch) -> Finding:
        kind = KINDS[f["kind"]]
        where = program.locations[f["pc"]]
        other = program.locations[f["other_pc"]] if f["other_pc"] >= 0 else None
        who = f"block {f['block']} thread {f['thread']}"
        size, address = int(f["size"]), int(f["address"])
        message = {
            "misaligned": f"an address that is no multiple of {size}",
            "uninitialised": "shared memory is read that nothing was written to",
            "unwaited copy": "shared memory that a cp.async may still be writing",
            "divergent barrier": "threads of a block are at different barriers, or some have exited",
            "divergent warp": "not all lanes of the mask are here",
            "deadlock": "a barrier is never complete",
            "endless": f"more than {launch.max_steps} instructions",
            "trap": "the kernel stopped itself",
        }.get(kind, "")
        if kind == "out of bounds":
            message = f"{size} bytes, {self.nearest(address, size, int(f['region']), named, program, launch)}"
        elif kind in ("race", "write race"):
            message = "nothing orders it with"
        if other is not None:
            first = f"block {f['other_block']} thread {f['other_thread']} at " if f["other_block"] >= 0 else ""
            message += f"{' ' if first else ', of '}{first}{other} ({program.opcodes[f['other_pc']]})"
        if kind in ("race", "write race", "unwaited copy", "uninitialised", "misaligned"):
            message += f", {self.place(address, int(f['region']), program, int(f['pc']), named)}"
        times = f", {f['count']} times" if f["count"] > 1 else ""
        return Finding(kind, where, program.opcodes[f["pc"]], f"{who}: {message}{times}", int(f["count"]), other)

    def place(self, address: int, region: int, program: Program, pc: int, named: list) -> str:
        if region < 0 and program.code[pc]["space"] != GLOBAL:
            return f"shared byte {address}"
        for name, (low, high) in named:
            if low <= address < high:
                return f"byte {address - low} of {name}"
        return f"address {address:#x}"

    def nearest(self, address: int, size: int, region: int, named: list, program: Program, launch: Launch) -> str:
        if region < -1:
            space = -1 - region
            bytes_of = {PARAM: program.param_bytes}.get(
                space, launch.shared_bytes if space == 2 else program.local_bytes
            )
            return f"at byte {signed(address)} of {bytes_of} {('shared', 'local', 'parameter')[space - 2]} bytes"
        if not named:
            return f"at {address:#x}: there is no array"
        distance = lambda e: max(e[0] - address, address + size - e[1])  # noqa: E731
        name, (low, high) = min(named, key=lambda n: distance(n[1]))
        return f"at byte {address - low} of {name}, which has {high - low}"


def signed(address: int) -> int:
    return address - 2**64 if address >> 63 else address


def load(text: str) -> Module:
    return Module(text)


@functools.lru_cache(maxsize=8)
def loaded(text: str) -> Module:
    """One for all launches of the last few texts. As on a GPU, variables of a module are as a launch left them."""
    return Module(text)
