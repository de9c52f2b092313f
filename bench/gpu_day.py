"""The stages of bench/gpu_day.sh, each a process of its own: `python -m bench.gpu_day STAGE ...`.

Results go to the folder OUT, what one process leaves for the next to WORK. Without a GPU the same ways are gone on tiny
sizes, in Triton's interpreter.
"""

from __future__ import annotations

import collections
import copy
import csv
import faulthandler
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch

import sobolev_kernels as sk
from sobolev_kernels.enums import PRECISIONS
from sobolev_kernels.math.activations import ACTIVATIONS
from sobolev_kernels.math.table import choose
from sobolev_kernels.testing import named
from sobolev_kernels.testing.compare import beside_reference, step
from sobolev_kernels.testing.graphs import assert_draws_anew, assert_follows, captured, whole_step
from sobolev_kernels.testing.problems import Shape, cotangents_of, data, directions_of
from sobolev_kernels.testing.speed.cases import CASES, FIRST, Case, make_data, make_student
from sobolev_kernels.training.captured import stepper_of

from . import epoch, gpu, gpu_residuals
from .any import steps_of
from .students import STUDENTS as ANY

GPU = torch.cuda.is_available()
if os.environ.get("TRITON_INTERPRET"):
    from sobolev_kernels.testing import interpreter  # noqa: F401
DEVICE = "cuda" if GPU else "cpu"
OUT, WORK = (Path(os.environ.get(name, ".")) for name in ("OUT", "WORK"))
# Of a hidden layer 16 to 300 wide: on chip, in cache, layer by layer.
SHAPES = [
    Shape(*numbers, why)
    for *numbers, why in (
        (1000, 3, 16, 3, 1, 2, "narrow, many blocks"),
        (1000, 5, 50, 3, 2, 3, "three layers that stay on chip; odd sizes"),
        (1000, 8, 64, 4, 8, 4, "several outputs"),
        (1000, 16, 128, 3, 1, 4, "the widest of one launch"),
        (1000, 16, 100, 2, 3, 2, "between two rows of the table"),
        (1000, 20, 20, 4, 1, 2, "more inputs than stay on chip"),
        (1000, 32, 256, 2, 2, 2, "layer by layer"),
        (1000, 6, 300, 2, 2, 2, "layer by layer, torch's multiply"),
        (1000, 3, 33, 1, 2, 2, "one hidden layer"),
        (16384, 8, 64, 3, 1, 4, "many tiles a program"),
    )
]
TINY = [replace(SHAPES[1], N=40), replace(SHAPES[7], N=8, H=140, depth=1), replace(SHAPES[8], N=40)]
STEADY = 75  # seconds after which a check counts as hanging


class Mode(NamedTuple):
    """How a step is asked for; those of `once` are checked on one shape, in two precisions."""

    projections: Callable[[Shape], sk.Directions | sk.Cotangents]
    targets: tuple[str, ...] = ("values", "jacobian")
    settings: Mapping[str, object] = MappingProxyType({})
    once: bool = False


def drawn(side: Callable, distribution: str) -> Callable:
    return lambda shape: side(distribution, shape)


MODES = {
    "sphere": Mode(drawn(directions_of, "sphere")),
    "cotangents": Mode(drawn(cotangents_of, "sphere")),
    "given": Mode(drawn(directions_of, "given"), ("values", "tangents")),
    "basis": Mode(drawn(directions_of, "basis")),
    "order 2": Mode(drawn(directions_of, "given"), ("values", "tangents", "seconds"), {"order": 2}),
    "rademacher": Mode(drawn(directions_of, "rademacher"), settings={"weights": (0.5, 2.0)}, once=True),
    "coordinate": Mode(drawn(directions_of, "coordinate"), once=True),
    "orthonormal": Mode(drawn(directions_of, "orthonormal"), once=True),
    "basis of cotangents": Mode(drawn(cotangents_of, "basis"), once=True),
    "per sample": Mode(drawn(directions_of, "sphere"), settings={"reduction": "none"}, once=True),
    "huber": Mode(drawn(directions_of, "normal"), settings={"value_loss": "huber", "derivative_loss": "l1"}, once=True),
}


class Check(NamedTuple):
    backend: str
    precision: str
    mode: str
    shape: Shape

    @property
    def key(self) -> list[str]:
        return [self.backend, self.precision, self.mode, str(self.shape)]


def checks(backend: str) -> list[Check]:
    shapes, first = (SHAPES, SHAPES[1]) if GPU else (TINY, TINY[0])
    found = []
    for shape in shapes:
        for name, mode in MODES.items():
            if mode.once and shape is not first:
                continue
            precisions = PRECISIONS if GPU else ("ieee", "fp16") if name == "sphere" else ("ieee",)
            if mode.once and GPU:
                precisions = ("ieee", "bf16")
            found += [Check(backend, precision, name, shape) for precision in precisions]
    return found


def outcome(check: Check) -> list[str]:
    """A verdict, the error over what the rule allows, and of which tensor; a second run must give the same bits."""
    mode = MODES[check.mode]
    numbers, projections = data(check.shape, "tanh"), mode.projections(check.shape)
    how = {"precision": check.precision, "device": DEVICE, **mode.settings}
    first = beside_reference(numbers, projections, mode.targets, check.backend, **how)
    second = beside_reference(numbers, projections, mode.targets, check.backend, **how).got
    ratio, where = first.worst()
    try:
        first.check()
        same = all(torch.equal(first.got[name], second[name]) for name in first.names())
        verdict = "ok" if same else "NOT REPEATABLE"
    except AssertionError:
        verdict = "WRONG"
    return [verdict, f"{ratio:.3g}", where]


def correct(backend: str, shard: str, shards: str) -> None:
    """Every check of a shard into correct-BACKEND-SHARD.csv; a process that follows a dead one goes on behind it."""
    mine = checks(backend)[int(shard) :: int(shards)]
    state, rows = WORK / f"state-{backend}-{shard}", WORK / f"correct-{backend}-{shard}.csv"
    at = int(state.read_text()) if state.exists() else 0

    def write(*cells: str) -> None:
        with rows.open("a", newline="") as file:
            csv.writer(file).writerow(cells)

    if at and mine[at - 1].key not in [row[:4] for row in read(rows)]:
        write(*mine[at - 1].key, "CRASH OR HANG", "", "", "")
    torch.set_num_threads(1)
    for k in range(at, len(mine)):
        state.write_text(str(k + 1))
        faulthandler.dump_traceback_later(STEADY, exit=True)
        began, fatal = time.perf_counter(), False
        try:
            cells = outcome(mine[k])
        except NotImplementedError as error:
            cells = ["refused", "", str(error).splitlines()[0][:100]]
        except Exception as error:
            text = f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
            fatal, cells = GPU and any(word in text for word in gpu.FATAL), ["ERROR", "", text]
        faulthandler.cancel_dump_traceback_later()
        write(*mine[k].key, *cells, f"{time.perf_counter() - began:.1f}")
        if fatal:
            sys.exit(3)


def tiny(backend: str) -> None:
    """A few small steps, for the sanitizer."""
    for shape in (Shape(37, 3, 16, 2, 1, 2, ""), Shape(37, 5, 40, 3, 2, 2, ""), Shape(20, 4, 100, 2, 2, 2, "")):
        numbers = data(shape, "tanh").on(DEVICE)
        for precision in ("ieee", "tf32", "bf16") if GPU else ("ieee",):
            for side in (directions_of, cotangents_of):
                loss = step(numbers, side("sphere", shape), backend, precision=precision)["loss"]
                print("tiny", backend, precision, shape, float(loss))


def graph(backend: str, precision: str) -> None:
    """A whole step with its backward, captured; replayed after inputs and weights changed, and with directions that
    each replay draws anew."""
    shape, said = SHAPES[2], []
    numbers = data(shape, "tanh").on(DEVICE)
    given = sk.Directions.given(torch.randn(shape.P, shape.N, shape.D, device=DEVICE))
    step = partial(whole_step, numbers, backend=backend, precision=precision)
    for name, check in {
        "follows what it reads": lambda: assert_follows(numbers, step(given)),
        "draws anew": lambda: assert_draws_anew(*captured(step(sk.Directions.sphere(shape.P)))),
    }.items():
        try:
            check()
            said.append(f"{name}: yes")
        except AssertionError as error:
            said.append(f"{name}: NO {error}")
    print(f"graph {backend} {precision}: {'; '.join(said)}")


def kernels(backend: str, precision: str) -> None:
    """What a step launches, by the profiler, into kernels.csv."""
    rows = gpu.launched(gpu.step_of(cases()[4], backend, precision, DEVICE)[0])
    with (OUT / "kernels.csv").open("a", newline="") as file:
        csv.writer(file).writerows([backend, precision, e.name[:90], e.device_time_total] for e in rows)
    total = sum(e.device_time_total for e in rows)
    print(f"kernels {backend} {precision}: {len(rows)} on the GPU, {total:.1f} us of them")


def host() -> None:
    """Where the host's time of a step goes: our calls beside what autograd takes for a function that computes nothing,
    and a whole ordinary step."""
    case = cases()[0]
    student, numbers = make_student(case).to(DEVICE), make_data(case)
    x, y, jacobian, given = (t.to(DEVICE) for t in (numbers.x, numbers.y, numbers.jacobian, numbers.directions))
    parameters, targets = list(student.parameters()), sk.Targets(values=y, jacobian=jacobian)

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *parameters):
            return torch.empty((), device=DEVICE)

        @staticmethod
        def backward(ctx, cotangent):
            return tuple(map(torch.empty_like, parameters))

    losses = {
        "ordinary step, of values": lambda: torch.nn.functional.mse_loss(student(x), y),
        "a function that computes nothing": lambda: Nothing.apply(*parameters),
    }
    for backend in ("cuda", "triton") if GPU else ("triton",):
        how = {"directions": sk.Directions.given(given), "backend": backend}
        losses[f"our step, {backend}"] = lambda how=how: sk.sobolev_loss(student, x, targets, **how)
    for name, loss in losses.items():
        whole = lambda loss=loss: torch.autograd.grad(loss(), parameters)  # noqa: E731
        forward, both = (gpu.host_microseconds(each, 200 if GPU else 2, DEVICE)[0] for each in (loss, whole))
        print(f"host {name}: forward {forward:.0f} us, with backward {both:.0f} us")


def fit() -> None:
    """Epochs of `fit`, whose step is one captured graph, beside a loop in PyTorch; both end at the same weights."""
    epoch.EPOCHS = 6 if GPU else 1
    found = epoch.measure(2, 3 if GPU else 1, jax=False, device=DEVICE)
    print("fit: ms of an epoch", {name: f"{1e3 * statistics.median(times):.2f}" for name, times in found.items()})
    student, x, targets = epoch.problem(DEVICE)
    optimizer = torch.optim.Adam(student.parameters(), torch.tensor(1e-3, device=DEVICE), capturable=GPU)
    stepper = stepper_of(student, optimizer, None, x)
    sk.fit(student, x, targets, epochs=1, batch_size=epoch.BATCH, progress=False)
    print(f"fit: steps by {type(stepper).__name__}")


def students() -> None:
    """A step of each student that is no MLP, by us and by double backward: compared, then timed as a call."""
    for name, (kind, O, P) in itertools.product(ANY, (("tangents", 10, 4), ("tangents", 1, 1), ("exact", 1, 1))):
        for N in (1024, 16384) if GPU else (8,):
            what = f"students {name} {kind} O={O} P={P} N={N}"
            try:
                steps = steps_of(name, kind, N, O, P, False, DEVICE)
            except Exception as error:
                print(
                    f"students {name} {kind} O={O} P={P} N={N}: {type(error).__name__}: {str(error)[:200]}", flush=True
                )
                continue
            times = {way: gpu.host_microseconds(step, 15 if GPU else 1, DEVICE)[1] for way, step in steps.items()}
            said = ", ".join(f"{way} {time:.0f}" for way, time in times.items())
            print(f"{what}: us {said}", flush=True)


def partials(shard: str = "0", shards: str = "1") -> None:
    """Named partials up to order 4, of an MLP and of a student that is none, beside those in float64 on the CPU; a
    shard of the plans by Triton's kernels in each precision; in the first shard losses of residuals, also timed."""
    wanted = ("u", "u_x", "u_xy", "v_xxx", "u_xxxx", "u_xxxx + 2*u_xxyy + u_yyyy")
    networks = {"MLP": (sk.MLP(4, 2, width=64, depth=3, activation="tanh"), 1000), "Fourier": (ANY["Fourier"](2), 200)}
    for name, (student, N) in networks.items():
        x = torch.randn(N, 4, dtype=torch.float64)
        expected = sk.partials(copy.deepcopy(student).double(), x, wanted, fields="x y z t -> u v")
        got = sk.partials(student.to(DEVICE), x.float().to(DEVICE), wanted, fields="x y z t -> u v")
        errors = ((got[each].cpu() - expected[each]).abs().max() / expected[each].abs().max() for each in wanted)
        print(f"partials of {name}, errors:", ", ".join(f"{error.item():.0e}" for error in errors), flush=True)
    formulas = tuple(choose(ACTIVATIONS, "activation", name) for name in (*["tanh"] * 3, "identity"))
    asked = list(itertools.product(PRECISIONS if GPU else PRECISIONS[:1], named.PLANS.items()))
    for precision, (plan, names) in asked[int(shard) :: int(shards)]:
        try:
            named.agree(named.Named(*names, (64,) * 3, formulas, 1000 if GPU else 8), "triton", precision, DEVICE)
            said = "within the rule"
        except (AssertionError, NotImplementedError) as error:
            said = str(error)
        print(f"named, {plan}, {precision}: {said}", flush=True)
    for line in gpu_residuals.lines(DEVICE) if shard == "0" else ():
        print(line, flush=True)


def cases() -> list[Case]:
    """Those of the benchmark; without a GPU two of them, tiny."""
    first = [case for case in CASES if case.kind == FIRST]
    if GPU:
        return first
    small = lambda case: Case(min(case.N, 24), case.D, min(case.H, 32), case.hidden, case.O, case.P)  # noqa: E731
    return [small(first[4]), small(first[6])]


def timed() -> list[tuple[str, str]]:
    """The rows of times.csv in the order of their use, should time run out."""
    if not GPU:
        return [("triton", "ieee"), (gpu.REFERENCE, "ieee"), (gpu.DOUBLE_BACKWARD, "ieee")]
    who = gpu.contestants()
    return sorted(who, key=lambda row: ("bf16", "ieee", "tf32", "fp16").index(row[1]) + (row[0] not in gpu.OURS))


def warm(shard: str, shards: str) -> None:
    """Compile in parallel what is timed later; Triton's and Inductor's caches are on disk."""
    compiled = ("triton", gpu.COMPILED, gpu.COMPILED_GRADIENT)
    rows = [(case, *who) for who in timed() if who[0] in compiled for case in cases() if gpu.takes_part(case, who[0])]
    for case, backend, precision in rows[int(shard) :: int(shards)]:
        try:
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
            gpu.step_of(case, backend, precision, DEVICE)[0]()
        except Exception as error:
            print("warm", case, backend, precision, type(error).__name__, str(error)[:200])


def times() -> None:
    for line in gpu.ceilings(DEVICE):
        print(f"ceiling: {line}", flush=True)
    gpu.measure(cases(), DEVICE, 30 if GPU else 1, OUT / "times.csv", timed())


def one(k: str, backend: str, precision: str) -> None:
    """A few steps, for the profiler of kernels."""
    run, _ = gpu.step_of(cases()[int(k)], backend, precision, DEVICE)
    for _ in range(6):
        run()


def read(path: Path) -> Iterator[Sequence[str]]:
    if path.exists():
        with path.open(newline="") as file:
            yield from csv.reader(file)


def table() -> None:
    found = list(read(OUT / "correct.csv"))
    count = collections.Counter((row[0], row[1], row[4]) for row in found)
    print("\ncorrectness:", *(f"\n   {' '.join(key)} {count[key]}" for key in sorted(count)))
    for row in [row for row in found if row[4] not in ("ok", "refused")][:12]:
        print("  !", *(cell[:110] for cell in row))
    print("\nmicroseconds: case | who precision | host eager graph cold | TFLOP/s | error/rule | note")
    for r in gpu.read(OUT / "times.csv"):
        columns = ("host_us", "eager_us", "graph_us", "graph_cold_us", "tflops", "error_over_rule")
        numbers = [r[name].rjust(8) for name in columns]
        print(f"{r['case']:26} {r['backend']:17} {r['precision']:4}", *numbers, r["note"])


STAGES = {
    "correct": correct, "tiny": tiny, "graph": graph, "kernels": kernels, "host": host, "warm": warm,
    "times": times, "one": one, "table": table, "fit": fit, "students": students, "partials": partials,
}  # fmt: skip

if __name__ == "__main__":
    STAGES[sys.argv[1]](*sys.argv[2:])
