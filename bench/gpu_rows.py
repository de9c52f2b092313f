"""An experiment: rows of the launch table on a GPU, `OUT=... BUDGET=280 python3 -m bench.gpu_rows` in the root.

Candidates stand in bench/gpu_rows.txt, one a line: case, precision, row. A row is `table` (what launches.py chooses; also
of main, whose backend is in main_triton.tgz), or place, samples of a tile, warps, programs of a multiprocessor, rows of
a slice of gradients, columns of a chunk, stages of a pipelined loop. JOBS processes compile them all by one step on few samples; then each is
checked by the one rule, and its step and its step kernel alone are timed as captured graphs. Results in $OUT/rows.csv,
line by line; a second call with the same WORK goes on behind the last one. `python -m bench.gpu_rows aot sm_90 [filter]` counts registers
without a GPU; WIDE=1 takes the whole grid instead of the file. Without a GPU: TRITON_INTERPRET=1, tiny sizes, no graphs.
"""

from __future__ import annotations

import csv
import faulthandler
import os
import shutil
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from sobolev_kernels.backends.triton import launches, one_launch

from sobolev_kernels.testing.compare import Comparison

from . import gpu
from .cases import Case
from .check import named as named_
from .sweep import forced

HERE = Path(__file__).parent
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
OUT, WORK = Path(os.environ.get("OUT", "results")), Path(os.environ.get("WORK", "/tmp/gpu_rows"))
TREE = os.environ.get("TREE", "slices")
JOBS, BUDGET = int(os.environ.get("JOBS", "12" if GPU else "1")), float(os.environ.get("BUDGET", "280"))
STARTED = float(os.environ.get("STARTED", "0")) or time.time()
CASES = {
    "a": Case(4096, 8, 64, 4, 8, 4),
    "b": Case(8192, 16, 128, 3, 1, 4),
    "c": Case(65536, 8, 64, 3, 1, 4),
    "d": Case(65536, 4, 32, 3, 1, 2),
}  # fmt: skip
COLUMNS = (
    "tree", "case", "precision", "row", "programs", "registers", "local_bytes", "shared", "step_us", "kernel_us",
    "first_s", "error_over_rule", "verdict",
)  # fmt: skip
HANGS = 25 if GPU else 250


def left() -> float:
    return BUDGET - (time.time() - STARTED)


@dataclass(frozen=True)
class Row(launches.Launch):
    per_sm: int = 1
    stages: int = 1

    @property
    def options(self) -> dict[str, int]:
        """As many registers as the programs of a multiprocessor leave each other."""
        return {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": min(255, 2048 // (self.warps * self.per_sm) // 8 * 8)}


def row_of(text: str, case: Case) -> Row | None:
    if text == "table":
        return None
    place, *numbers = text.split()
    block, warps, per_sm, rows, chunk, stages = map(int, numbers)
    layers = case.hidden if place == "chip" else None
    return Row(case.H, block, warps, layers, slice=rows, chunk=chunk, per_sm=per_sm, stages=stages)


def as_row(row: Row | None):
    if row is None:
        return nullcontext()
    processors = torch.cuda.get_device_properties(0).multi_processor_count if GPU else 3
    many = processors * row.per_sm
    return forced(one_launch, one_launch=lambda problem: row, count_programs=lambda tiles, warps, device: min(tiles, many))


class Watched:
    """The step kernel, and its last launch: grid, arguments and what was launched."""

    def __init__(self, kernel):
        self.kernel, self.last = kernel, None

    def __getitem__(self, grid):
        def launch(*values, **named):
            self.last = (grid, values, named, self.kernel[grid](*values, **named))

        return launch


@contextmanager
def watched():
    kernel = one_launch.step_kernel
    one_launch.step_kernel = Watched(kernel)
    try:
        yield one_launch.step_kernel
    finally:
        one_launch.step_kernel = kernel


# ---- candidates ----

WIDE_CHIP = [
    "chip 16 8 1 32 16 1", "chip 16 8 1 64 16 1", "chip 16 8 1 32 32 1", "chip 16 8 1 32 64 1", "chip 16 8 1 32 16 3",
    "chip 16 4 2 32 16 1", "chip 16 4 2 32 64 1", "chip 16 4 3 32 16 1", "chip 16 4 4 32 16 1",
    "chip 16 8 2 32 16 1", "chip 16 8 2 32 64 1", "chip 16 16 1 32 16 1",
    "chip 32 8 1 32 16 1", "chip 32 8 1 64 16 1", "chip 32 8 1 32 64 1", "chip 32 8 2 32 16 1", "chip 32 16 1 32 16 1",
    "chip 32 4 2 32 16 1",
]  # fmt: skip
WIDE_128 = ["chip 16 8 1 128 16 1", "chip 16 8 1 64 16 1", "chip 16 16 1 64 16 1"]
WIDE_CACHE = [
    "cache 16 8 1 32 16 1", "cache 16 8 2 32 16 1", "cache 16 8 3 32 16 1", "cache 32 8 1 32 16 1", "cache 32 8 2 32 16 1",
    "cache 16 4 2 32 16 1", "cache 16 4 4 32 16 1", "cache 16 4 6 32 16 1", "cache 32 4 2 32 16 1", "cache 32 4 4 32 16 1",
    "cache 32 16 1 32 16 1", "cache 32 8 1 32 16 3", "cache 16 8 2 32 16 3",
]  # fmt: skip


def wide() -> list[tuple[str, str, str]]:
    """What bench/gpu_rows.txt was chosen from, by registers."""
    found = []
    for (name, case), precision in product(CASES.items(), ("bf16", "ieee", "tf32")):
        found.append((name, precision, "table"))
        found += [(name, precision, row) for row in (WIDE_CHIP if case.H == 64 else WIDE_128) + WIDE_CACHE]
    return found


def listed() -> list[tuple[str, str, str]]:
    if os.environ.get("WIDE"):
        return wide()
    lines = (line.split("#")[0].split() for line in Path(os.environ.get("LIST", HERE / "gpu_rows.txt")).read_text().splitlines())
    found = [(words[0], words[1], " ".join(words[2:])) for words in lines if words]
    return found if TREE == "slices" else [candidate for candidate in found if candidate[2] == "table"]


def case_of(name: str, few: bool = False) -> Case:
    case = CASES[name]
    if not GPU:
        return replace(case, N=20, H=16, hidden=2, P=2)
    return replace(case, N=64) if few else case


# ---- stages ----


def rows_in(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Sheet:
    """Rows by candidate in a CSV; a candidate that was begun and not ended killed its process."""

    def __init__(self, path: Path, copied: Path | None = None):
        self.path, self.copied, self.begun = path, copied, path.with_suffix(".begun")
        self.rows = rows_in(path)
        if self.begun.exists():
            candidate = tuple(self.begun.read_text().split("|"))
            if candidate not in self.done():
                self.write(candidate, verdict="DIED OR HUNG")
            self.begun.unlink()

    def done(self) -> set[tuple[str, ...]]:
        return {(row["tree"], row["case"], row["precision"], row["row"]) for row in self.rows}

    def begin(self, candidate: tuple[str, ...], most: float = HANGS) -> None:
        self.begun.write_text("|".join(candidate))
        faulthandler.dump_traceback_later(most, exit=True)

    def write(self, candidate: tuple[str, ...], **cells: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        row = dict(zip(COLUMNS, candidate, strict=False)) | {name: str(cell) for name, cell in cells.items()}
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="")
            if new:
                writer.writeheader()
            writer.writerow(row)
        if self.copied:
            shutil.copy(self.path, self.copied)
        self.rows.append(row)
        print(",".join(row.get(name, "") for name in COLUMNS), flush=True)


def described(error: Exception) -> tuple[str, bool]:
    text = f"{type(error).__name__}: {error}".replace("\n", " ")[:200]
    return text, GPU and any(word in text for word in gpu.FATAL)


def warm(shard: str, shards: str) -> None:
    """Compile by a step on few samples; who fails is not timed."""
    torch.set_num_threads(1)
    sheet = Sheet(WORK / f"warm-{TREE}-{shard}.csv")
    for name, precision, text in listed()[int(shard) :: int(shards)]:
        candidate = (TREE, name, precision, text)
        if candidate in sheet.done():
            continue
        sheet.begin(candidate, 3 * HANGS)
        began = time.time()
        try:
            case = case_of(name, few=True)
            with as_row(row_of(text, case)):
                gpu.step_of(case, "triton", precision, DEVICE)[0]()
            gpu.wait(DEVICE)
            sheet.write(candidate, verdict="compiled", first_s=f"{time.time() - began:.1f}")
        except Exception as error:
            text, fatal = described(error)
            sheet.write(candidate, verdict=text)
            if fatal:
                sys.exit(3)


def expected(name: str, precision: str) -> dict[str, dict[str, torch.Tensor]]:
    """Loss and gradients by the reference, from the disk if they are there."""
    found = {}
    for kind, dtype, rounding in (("expected", torch.float64, "ieee"), ("baseline", torch.float32, precision)):
        path = WORK / f"{name}-{kind}-{rounding}.pt"
        if not path.exists():
            part = path.with_suffix(f".{os.getpid()}")
            torch.save(gpu.expectation(case_of(name), dtype, rounding), part)
            part.rename(path)
        found[kind] = torch.load(path)
    return found


def expect() -> None:
    torch.set_num_threads(4 if GPU else 1)
    for name, precision, _ in listed():
        began = time.time()
        expected(name, precision)
        print("expected", name, precision, f"{time.time() - began:.1f} s", flush=True)


def measured(name: str, precision: str, text: str) -> dict[str, object]:
    case = case_of(name)
    cells: dict[str, object] = {}
    with as_row(row_of(text, case)), watched() as kernel:
        began = time.time()
        step, student = gpu.step_of(case, "triton", precision, DEVICE)
        result = step()
        gpu.wait(DEVICE)
        cells["first_s"] = f"{time.time() - began:.2f}"
        grid, values, named, compiled = kernel.last
        cells["programs"] = grid[0]
        if compiled is not None:
            cells |= {"registers": compiled.n_regs, "local_bytes": 4 * compiled.n_spills}
            cells["shared"] = compiled.metadata.shared
        done = Comparison(named_(student, result), **expected(name, precision), precision=precision)
        cells["error_over_rule"] = f"{done.worst()[0]:.3g}"
        try:
            done.check()
            cells["verdict"] = "ok"
        except AssertionError as error:
            return cells | {"verdict": f"WRONG: {error}".replace("\n", " ")[:200]}
        if not GPU:
            return cells
        replay = gpu.captured(step)
        replay()
        cells["step_us"] = f"{gpu.microseconds(replay, 30):.1f}"
        replay = gpu.captured(lambda: kernel.kernel[grid](*values, **named))
        replay()
        cells["kernel_us"] = f"{gpu.microseconds(replay, 30):.1f}"
    return cells


def timed() -> None:
    """Candidates that were compiled, in the order of the file."""
    if not GPU:
        torch.set_num_threads(1)
    sheet = Sheet(WORK / "rows.csv", OUT / "rows.csv")
    compiled = {}
    for path in WORK.glob(f"warm-{TREE}-*.csv"):
        compiled |= {(r["tree"], r["case"], r["precision"], r["row"]): r["verdict"] for r in rows_in(path)}
    for name, precision, text in listed():
        candidate = (TREE, name, precision, text)
        if candidate in sheet.done():
            continue
        if left() < 3:
            break
        verdict = compiled.get(candidate, "not compiled in time")
        if verdict != "compiled":
            if candidate in compiled:
                sheet.write(candidate, verdict=verdict)
            else:
                print(",".join(candidate), verdict, flush=True)
            continue
        sheet.begin(candidate)
        try:
            sheet.write(candidate, **measured(name, precision, text))
        except Exception as error:
            verdict, fatal = described(error)
            sheet.write(candidate, verdict=verdict)
            if fatal:
                sys.exit(3)
    sheet.begun.unlink(missing_ok=True)


def aot(target: str, word: str = "") -> None:
    """Registers of the candidates, by ahead-of-time compilation."""
    import tempfile

    from ptx.compile import machine_instructions, tool, variant
    from ptx.triton_on_ptx import recorded

    for name, precision, text in listed():
        if word not in f"{name} {precision} {text}":
            continue
        case = replace(CASES[name], N=32)
        row = row_of(text, case)
        if row is None:
            row = next(r for r in launches.ON_CHIP + launches.IN_CACHE if target in r.targets and r.takes(replace(case.problem, precision=precision)))
        began = time.time()
        try:
            with forced(one_launch, one_launch=lambda problem, row=row: row), recorded() as found:
                with torch.enable_grad():
                    gpu.step_of(case, "triton", precision, "cpu")[0]()
            done = variant(*next(f for f in found if f[0].fn.__name__ == "step_kernel"), target).compiled()
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "k.cubin")
                file.write_bytes(done.binary)
                said = subprocess.run([tool("cuobjdump"), "-res-usage", str(file)], capture_output=True, text=True)
            said = said.stdout + said.stderr
            number = lambda what, said=said: int(said.split(what + ":")[1].split()[0])  # noqa: E731
            counts = machine_instructions(done.binary)
            print(f"{name} {precision} {text}  # reg {number('REG')} of {row.options['maxnreg']}, stack {number('STACK')}, "
                  f"spills {counts['STL'] + counts['LDL']}, mma {counts['HMMA']}, wgmma {counts['HGMMA']}, "
                  f"shared {done.shared}, code {sum(counts.values())}, bars {counts['BAR']}, {time.time() - began:.0f} s", flush=True)
        except Exception as error:
            print(f"# {name} {precision} {text} {described(error)[0]}", flush=True)


def run() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    base = WORK / "main"
    if not base.exists():
        for part in ("sobolev_kernels", "bench"):
            shutil.copytree(HERE.parent / part, base / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        shutil.rmtree(base / "sobolev_kernels/backends/triton")
        with tarfile.open(HERE / "main_triton.tgz") as archive:
            archive.extractall(base, filter="data")
    trees = {"main": base, "slices": HERE.parent}
    common = {"OUT": str(OUT.resolve()), "WORK": str(WORK.resolve()), "STARTED": str(STARTED), "BUDGET": str(BUDGET)}
    common |= {"TRITON_CACHE_DIR": str(WORK.resolve() / "triton"), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def started(tree: str, *stage: str, **how) -> subprocess.Popen:
        path = f"{os.environ['KEEP_PATH']}:{trees[tree]}" if "KEEP_PATH" in os.environ else str(trees[tree])
        environment = {**os.environ, **common, "TREE": tree, "PYTHONPATH": path}
        return subprocess.Popen([sys.executable, "-m", "bench.gpu_rows", *stage], cwd=trees[tree], env=environment, **how)

    log = (OUT / "warm.log").open("a")
    most = max(60.0, 0.55 * BUDGET)
    waiting = [("slices", str(k), str(JOBS), 4) for k in range(JOBS)] + [("main", "0", "1", 4)]
    going = [(job, started(job[0], "warm", *job[1:3], stdout=log, stderr=log)) for job in waiting]
    going.append((("slices", "", "", 0), started("slices", "expect", stdout=log, stderr=log)))
    while going and time.time() - STARTED < most:
        time.sleep(0.3)
        ended = [(job, process) for job, process in going if process.poll() is not None]
        going = [(job, process) for job, process in going if process.returncode is None]
        for (tree, k, n, tries), process in ended:
            if process.returncode and tries:
                going.append(((tree, k, n, tries - 1), started(tree, "warm", k, n, stdout=log, stderr=log)))
    for _, process in going:
        process.kill()
        process.wait()
    print(f"compiled after {time.time() - STARTED:.0f} s; {len(going)} processes were not through", flush=True)
    for tree in trees:
        for _ in range(12):
            process = started(tree, "timed")
            try:
                if process.wait(timeout=max(1.0, left() + 2)) == 0:
                    break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                break
    print(f"through after {time.time() - STARTED:.0f} s", flush=True)


STAGES = {"warm": warm, "expect": expect, "timed": timed, "aot": aot, "run": run}

if __name__ == "__main__":
    STAGES[sys.argv[1] if len(sys.argv) > 1 else "run"](*sys.argv[2:])
