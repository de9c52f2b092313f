"""The CUDA backend on a GPU, in a few minutes: `python -m bench.tiles`.

It is checked by the one rule, then timed as a replayed graph: three cases of the benchmark, in bf16 with every tile
that fits, directions given and drawn; beside them Triton, and the other precisions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

import sobolev_kernels as sk
from sobolev_kernels.backends import cuda
from sobolev_kernels.testing.compare import beside_reference, forget, step
from sobolev_kernels.testing.graphs import captured
from sobolev_kernels.testing.problems import Shape, data, directions_of
from sobolev_kernels.testing.speed.cases import CASES, FIRST, Case
from sobolev_kernels.testing.speed.variants import sobolev_step

from . import gpu

TILES = (cuda.CHOSEN, 128, 64, 32)
WANTED = {(65536, 64, 3, 4), (8192, 128, 3, 4), (4096, 64, 4, 4)}
TIMED = [case for case in CASES if case.kind == FIRST and (case.N, case.H, case.hidden, case.P) in WANTED]
CHECKED = [
    Shape(1000, 8, 64, 3, 1, 4, ""),
    Shape(1000, 8, 64, 4, 8, 4, ""),
    Shape(1000, 16, 128, 3, 1, 4, ""),
    Shape(1000, 5, 50, 2, 3, 2, ""),
    Shape(1000, 3, 20, 1, 2, 3, ""),
]


@contextmanager
def tile(samples: int) -> Iterator[None]:
    before, cuda.TILE = cuda.TILE, samples
    cuda.refusal.cache_clear()
    forget()
    try:
        yield
    finally:
        cuda.TILE = before
        cuda.refusal.cache_clear()
        forget()


def check(
    shape: Shape, samples: int, activation: str = "tanh", kind: str = "sphere", precision: str = "bf16"
) -> str:  # fmt: skip
    """The error over what the rule allows; a second run must give the same bits."""
    numbers, projections = data(shape, activation), directions_of(kind, shape)
    with tile(samples):
        first = beside_reference(
            numbers, projections, ("values", "jacobian"), "cuda", precision=precision, device="cuda"
        )
        same = True
        if kind != "given":
            second = step(numbers.on("cuda"), projections, "cuda", precision=precision)
            same = all(torch.equal(first.got[name], second[name]) for name in first.names())
    worst, where = first.worst()
    try:
        first.check()
        return f"{'ok' if same else 'NOT REPEATABLE'} {worst:.3f} {where}"
    except AssertionError as error:
        return f"WRONG {error}"


def attempt(label: str, work) -> None:
    try:
        print(f"{label}: {work()}", flush=True)
    except NotImplementedError as error:
        print(f"{label}: refused, {str(error).splitlines()[0][:120]}", flush=True)
    except Exception as error:  # the other rows are wanted all the same
        text = f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
        print(f"{label}: FAILED {text}", flush=True)
        if any(word in text for word in gpu.FATAL):
            sys.exit(1)


def time(case: Case, backend: str, precision: str, samples: int, drawn: bool) -> str:
    with tile(samples):
        taken, student = gpu.step_of(case, backend, precision, "cuda")
        worst = ""
        if not drawn:
            done = gpu.check(case, student, taken(), precision)
            worst = f", error over rule {done.worst()[0]:.3f} {done.worst()[1]}"
        else:
            numbers = gpu.make_data(case)
            numbers = gpu.Data(*(None if t is None else t.to("cuda") for t in numbers))
            student = gpu.make_student(case).to("cuda")
            directions = sk.Directions.sphere(case.P, seed=1)
            taken = sobolev_step(student, numbers, directions=directions, backend=backend, precision=precision)
        taken()
        replay = captured(taken)[0].replay
        replay()
        torch.cuda.synchronize()
        return f"{gpu.microseconds(replay, 5):.1f} us{worst}"


def kernels(case: Case, samples: int) -> str:
    """Microseconds of each kernel of a step, by the profiler."""
    with tile(samples):
        events = gpu.launched(gpu.step_of(case, "cuda", "bf16", "cuda")[0])
    ours = ("register_step", "finish_step")
    rows = [event for event in events if any(k in event.name for k in ours)]
    return ", ".join(f"{next(k for k in ours if k in e.name)} {e.device_time_total:.1f}" for e in rows)


def main() -> int:
    if not torch.cuda.is_available():
        print("no GPU")
        return 1
    print(torch.cuda.get_device_name(), torch.__version__, flush=True)
    for shape in CHECKED:
        for samples in TILES:
            attempt(f"check {shape} tile {samples}", lambda s=shape, t=samples: check(s, t))
    for precision in ("fp16", "ieee", "tf32"):
        for shape in CHECKED:
            attempt(f"check {shape} {precision}", lambda s=shape, p=precision: check(s, cuda.CHOSEN, precision=p))
    many = Shape(16384, 8, 64, 3, 1, 4, "")
    attempt(f"check {many}", lambda: check(many, cuda.CHOSEN))
    for activation in ("relu", "sigmoid", "softplus", "elu", "silu"):
        attempt(f"check {activation}", lambda a=activation: check(CHECKED[3], cuda.CHOSEN, a))
    for kind in ("given", "normal", "rademacher", "basis"):
        attempt(f"check {kind}", lambda k=kind: check(CHECKED[0], cuda.CHOSEN, "tanh", k))
    for case in sorted(TIMED, key=lambda case: -case.N):
        for samples in TILES:
            for drawn in (False, True):
                label = f"time {case} cuda bf16 tile {samples} {'drawn' if drawn else 'given'}"
                attempt(label, lambda c=case, t=samples, d=drawn: time(c, "cuda", "bf16", t, d))
        attempt(f"time {case} triton bf16 given", lambda c=case: time(c, "triton", "bf16", cuda.CHOSEN, False))
        for samples in TILES:
            attempt(f"kernels {case} tile {samples}", lambda c=case, t=samples: kernels(c, t))
    for case in sorted(TIMED, key=lambda case: -case.N):
        for precision in ("fp16", "ieee", "tf32"):
            for backend in ("cuda", "triton"):
                label = f"time {case} {backend} {precision}"
                attempt(label, lambda c=case, b=backend, p=precision: time(c, b, p, cuda.CHOSEN, False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
