"""Any student: `python -m bench --any`, our step against what its author could write with PyTorch, in turns."""

from __future__ import annotations

import ctypes
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from itertools import product

import torch
from rich.console import Console
from rich.table import Table

from sobolev_kernels.testing.rule import IN_SINGLE
from sobolev_kernels.testing.speed.check import first_line
from sobolev_kernels.testing.speed.timing import TURN, interleave, quartiles

from .students import NORMED, STUDENTS
from .ways import BACKWARD, EXACT, KINDS, OURS, WAYS, WRITTEN, Data, data_of, ways_of

Step = Callable[[], tuple[torch.Tensor, ...]]
LEARNING = 8  # calls, after which one is like those before


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--any", nargs="*", choices=STUDENTS, metavar="STUDENT", help="only: students that are no MLPs")
    parser.add_argument("--match", nargs="+", choices=KINDS, default=KINDS, help="of --any, what is matched")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1024], help="of --any, N")
    parser.add_argument("--outputs", type=int, nargs="+", default=[1, 10], help="of --any, O")
    parser.add_argument("--along", type=int, nargs="+", default=[1, 4], help="of --any, P")
    parser.add_argument("--compiled", action="store_true", help="of --any: each way by torch.compile")
    parser.add_argument("--leave-out", nargs="+", choices=WAYS[1:], default=[], help="of --any, ways of others")
    parser.add_argument("--peak", action="store_true", help="of --any and --partials: memory, and no times")


def keep_memory() -> None:
    """Have glibc's allocator keep what it was once given: else what one way gives back at the end of a step is what
    the next one waits for, a page fault for each 4 KB, and a third of a step was seen to be that."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
    for option, count in ((M_TRIM_THRESHOLD, 1 << 30), (M_TOP_PAD, 64 << 20), (M_MMAP_THRESHOLD, 32 << 20)):
        set_option(option, count)


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h; 32 MB is the most that the last takes


def steps_of(
    name: str, kind: str, N: int, O: int, P: int, compiled: bool, device: torch.device | str = "cpu",
    without: Sequence[str] = (),
) -> dict[str, Step]:  # fmt: skip
    """A step with the gradients of all parameters, by way; losses and gradients are compared first.

    The forward is compiled, and with it what autograd does backward; nobody captures a graph of launches. What PyTorch
    does not compile, of others than ours, is said and left out.
    """
    torch.manual_seed(0)
    student = STUDENTS[name](O).to(device)
    data = Data(*(None if tensor is None else tensor.to(device) for tensor in data_of(kind, N, student.D, O, P)))
    parameters, steps, found = tuple(student.parameters()), {}, {}
    if compiled:  # once: what is compiled anew after it, as of the first ways, was seen to be a quarter slower
        torch.compiler.reset()
        torch._dynamo.config.allow_rnn = True  # it refuses nn.GRU else
    for way, function in ways_of(student, kind, compiled).items():
        if way in without:
            continue
        loss = lambda data, way=function: way(student, data, kind)  # noqa: E731
        if compiled:
            loss = torch.compile(loss, fullgraph=True, dynamic=False)
        step = lambda loss=loss: torch.autograd.grad(loss(data), parameters)  # noqa: E731
        try:
            found[way] = [loss(data).detach(), *step()]
        except RuntimeError as error:
            if way == OURS or not compiled:
                raise
            print(f"{name}, {kind}, N={N}, O={O}, P={P}: {way} does not compile: {first_line(error)}")
            continue
        steps[way] = step
        right = way != BACKWARD or not isinstance(student, NORMED)
        for got, expected in zip(found[way] if right else found[way][:1], found[OURS], strict=right):
            within = {"rtol": IN_SINGLE, "atol": IN_SINGLE * float(expected.abs().max())}
            torch.testing.assert_close(got, expected, **within, msg=lambda m, w=way: f"{w}: {m}")
    for _ in range(LEARNING):  # ours, or a turn would be as many calls as take so long while it still learns
        steps[OURS]()
    return steps


def peak_of(step: Step) -> int:
    """Bytes that PyTorch had allocated at most in a step, beyond what it had before; the gradients are of these."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    now = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def measure_any(options: Namespace, console: Console) -> None:
    """Run and print: milliseconds of each way, and of others over ours; or megabytes."""
    how = "compiled" if options.compiled else "eager"
    what = "peak MB" if options.peak else "ms"
    table = Table(title=f"A step of any student, {what}, {how}; † has wrong gradients", title_justify="left")
    for column in ("student", "matched", "N", "O", "P", *WAYS, "backward ÷ ours", "best right ÷ ours"):
        table.add_column(column, justify="left" if column in ("student", "matched") else "right")
    keep_memory()
    sizes = product(options.any or STUDENTS, options.match, options.batch, options.outputs, options.along)
    for name, kind, N, O, P in sizes:
        if kind == EXACT and P != options.along[0]:
            continue
        steps = steps_of(name, kind, N, O, P, options.compiled, without=options.leave_out)
        if options.peak:
            found = {way: peak_of(step) / 1e6 for way, step in steps.items()}
        else:
            times = interleave(steps, options.rounds, options.seconds, TURN)
            found = {way: 1e3 * quartiles(each).median for way, each in times.items()}
        wrong = {BACKWARD} if WRITTEN in found else set()
        numbers = [f"{found[way]:.2f}{'†' * (way in wrong)}" if way in found else "-" for way in WAYS]
        best = min((number for way, number in found.items() if way != OURS and way not in wrong), default=None)
        ratios = [f"{number / found[OURS]:.2f}" if number else "-" for number in (found.get(BACKWARD), best)]
        table.add_row(name, kind, str(N), str(O), "D" if kind == EXACT else str(P), *numbers, *ratios)
    console.print(table)
