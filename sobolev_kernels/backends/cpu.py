"""The fused CPU kernels of the C++ core (csrc/cpu), tile by tile, one call for the whole step."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch

from .. import planner
from ..enums import DENSE, DIRECTIONS, DTYPES, GRADIENTS, TANGENTS
from ..problem import Operands, Plan, Problem
from . import core, jets

MOST_LAYERS = 64

# Samples of a tile by the widest layer, from a sweep of 32 to 256 on two cores with 1 MiB of second-level cache each:
# a tile's arrays should stay there, but above 256 the weights leave it anyway and want more samples for each read.
# Above 512 those of 64 samples are as good, and the arrays smaller. ms, two threads of a Xeon with 2 MiB each, medians
# of three processes, tiles of 128 with 256 columns and of 64 with 128:
#
#     256, 64→1024×3→16, P=4      55.0  54.2        700, 8→768×2→3, P=3         30.8  30.5
#
# And samples times directions (or cotangents) that go side by side. In a small batch they fill the registers and a
# gradient is read and written once for all of them; in a large one only their arrays grow. µs, two threads of a Xeon
# with AVX-512 and 2 MiB each, medians of an idle machine, before (one at a time) and with this:
#
#     32, 100→256×3→50, P=10       2326   1473        20, 2→256×2→1, P=1             196   175
#     32, 64→128×4→32, P=4          421    284        32, 8→128×5→1, exact           229   189
#     24, 8→128×3→4, P=1            112     95        33, 8→256×3→8, P=4            1054   988
TILES = ((256, 64, 160), (512, 128, 256), (float("inf"), 64, 128))

# A narrow student's arrays grow less: numbers that one of those side by side may have. µs, 160 columns and so many:
#
#     218, 29→18×2→6, P=8           184    122        407, 10→80×1→11, P=4           148    138
#
# and twice as many again, or all: 1024, 4→128×5→10, exact, 6010 and 6101; 192, 16→166×1→11, exact, 278 and 340.
TOGETHER = 20480

# Gradients of the weights are gathered from what all threads kept, instead of summed over copies of their own, where
# the columns of that (samples times streams) are at most so many times as many as the widest layer is wide. µs, the
# same machine, copies and gathered, by that ratio; with one thread too:
#
#     0.2   20, 2→256×2→1, P=1         124    100        0.2   the same, one thread          141    130
#     0.5   32, 8→128×5→1, exact       147    113        0.5   the same, one thread          176    166
#     0.9   60, 20→128×3→1, P=1        116    104        1.5   48, 10→64×3→2, P=1             38     38
#     1.4   32, 100→256×3→50, P=10    1155   1209        2     128, 42→128×2→1, exact        144    164
#
# The same of the gradient of an only output, for directions, on another day:
#
#     0.5   24, 8→100×4→1, P=8          80     60        0.6   43, 123→141×4→1, P=8          290    250
#     0.8   50, 20→128×3→1, P=4        130    110        2     128, 16→128×3→1, P=4          220    230
GATHERED = 1

# Weights are read where they lie in students narrower than this, of which a thread has at most so many tiles: packing
# them pays when they are read more often, and rows that lie 4 KiB apart meet in the few sets of the first-level cache.
# µs, packed and in place:
#
#     20, 2→256×2→1, P=1               114     93        32, 16→900×3→1, P=1          3887   2661
#     64, 16→1000×3→4, P=4           14278  12136        64, 16→1024×3→4, P=4        14384  16335
#     256, 16→256×3→1, P=1            1340   1321        1000, 16→256×3→1, P=2        5092   5383
IN_PLACE = (1024, 2)

# Values and tangents go in lockstep, without gaps between their samples, where that saves such a share of the registers
# that a thread's products run over. µs, the same machine on another day, with gaps and without, by that share:
#
#     0.25  20, 2→256×2→1, P=1, one thread     126    112    0.4   66, 8→128×3→4, P=4     263    219
#     0.33  20, 8→64×3→4, P=2, one thread       36     29    0.5   16, 8→128×3→4, P=1      45     36
#     0.12  56, 8→128×3→4, P=1, one thread     147    140    0.12  100, 2→256×2→1, P=1    305    288
#     0     48, 2→256×2→1, P=1, one thread     217    235    0     32, 64→128×4→32, P=4, one thread   335    349
LOCKSTEP = 0.1

# Samples of a tile of named derivatives and of sums over directions, and directions that such a sum takes side by side;
# with more than TILE / 4 of them tiles are half as large. µs, the same machine, one thread, groups of 16, 32 and 64:
#
#     512, 100→64×3→1, sum       5281  4536  4250        with gradients  16211 14263 13718
#     64, 10→128×4→1, P=64       2014  1846  1867        with gradients   6133  5908  5929
#
# Of second derivatives apart, with two streams each, groups of 8, 16 and 32, time ÷ that of 16, P=64:
#
#     64, 8→64×3→1               1.03     1  1.02        20, 16→128×3→4             1.04     1  1.00
TILE, SUMMED, APART = 32, 64, 16

# A step of less work, in FLOPs of a multiply, of which an activation of a stream takes so many, is not shared out:
# threads would wait for each other longer, and where another process has one of the cores, for their turn on it, 9 ms
# were measured. µs, two threads and one:
#
#     9, 1→122×1→1, exact             8.8    5.8         107, 1→13×1→1, exact           6.4    7.1
#     8, 4→16×2→1, P=1                4.9    3.2         10, 67→24×3→1, exact           8.2    8.1
#     more: 64, 4→16×2→1, P=1         6.8    8.3         44, 10→10×2→18, P=2           11.1   12.7
ALONE, ACTIVATED = 1e6, 300


def supports(problem: Problem) -> str | None:
    if core.MISSING:
        return core.MISSING
    if problem.unrecognised:
        return problem.unrecognised
    if problem.device != "cpu":
        return f"tensors are on {problem.device}"
    if problem.dtype not in DTYPES:
        return f"dtype {problem.dtype} is not one of {', '.join(DTYPES)}"
    if len(problem.widths) - 1 > MOST_LAYERS:
        return f"{len(problem.widths) - 1} linear layers are more than {MOST_LAYERS}"
    if problem.head is not None and problem.order > 1:
        return f"second derivatives of a head, {problem.head}"
    if problem.head is not None and problem.given_gradient and problem.derivative_target == DENSE:
        return f"a head, {problem.head}, where {problem.projection} that require grad are what targets are projected on"
    return None


def plan(problem: Problem, N: int) -> Plan:
    if problem.order > 2:
        return Plan("cpu", "streams of all orders, tile-local", (("isa", core.instruction_set()),))
    side = planner.side(problem)
    threads = torch.get_num_threads() if work(problem, N, side) > ALONE else 1
    if problem.order > 1:
        shape = max(problem.widths), problem.P, 1 if problem.collapsed else problem.order
        return _plan_of_streams(*shape, N, threads, core.instruction_set())
    together = problem.P
    if side == GRADIENTS and problem.projection == DIRECTIONS:
        together = int(problem.O == 1 and problem.P > 0)  # the only output's gradient
    return _plan(max(problem.widths), together, side, N, threads, core.instruction_set())


def work(problem: Problem, N: int, side: str) -> float:
    """What a step costs, in FLOPs of a multiply."""
    streams = 1 + planner.chains(problem)[side]
    return N * (planner.cost(problem, side) + ACTIVATED * streams * sum(problem.widths[1:]))


@lru_cache(maxsize=256)
def _plan(width: int, together: int, side: str, N: int, threads: int, isa: str) -> Plan:
    """`together`: derivatives that can go side by side."""
    most, columns = next(row for limit, *row in TILES if width <= limit)
    each, lanes = max(1, -(-N // threads)), _lanes(isa)
    even_tile = even(each, most)
    tile = min(most, _up(even_tile, lanes))
    lockstep = side == TANGENTS and 0 < together <= _together(width, columns, even_tile)
    lockstep = lockstep and _saved(each, tile, even_tile, 1 + together, lanes) >= LOCKSTEP
    tile, parts = _shared_out(N, threads, even_tile if lockstep else tile)
    groups = max(1, -(-together // _together(width, columns, tile)))
    group = together if lockstep else max(1, -(-together // groups))
    gather = group == together and parts <= threads and parts * tile * (1 + group) <= GATHERED * width
    near = in_place(width, parts, threads)
    more = (("group", group),) * (group > 1) + (("gather", True),) * gather + (("in_place", True),) * near
    more += (("lockstep", True),) * lockstep
    choices = ("side", side), ("isa", isa), ("tile", tile), *more, ("threads", threads)
    return Plan("cpu", "fused, tile-local", choices)


@lru_cache(maxsize=256)
def _plan_of_streams(width: int, P: int, each: int, N: int, threads: int, isa: str) -> Plan:
    """Of order 2 along P directions, with so many streams of `each`, one where they are summed. Two have tiles half as
    large as those that weights in place were timed with."""
    most = SUMMED if each == 1 else APART
    group = even(P, most)
    most = TILE if each * group <= TILE // 4 else TILE // 2
    tile, parts = _shared_out(N, threads, min(most, _up(even(-(-N // threads), most), _lanes(isa))))
    near = (("in_place", True),) * in_place(width, -(-parts // each), threads)
    choices = ("side", TANGENTS), ("isa", isa), ("tile", tile), ("group", group), *near, ("threads", threads)
    return Plan("cpu", "streams, tile-local", choices)


def even(samples: int, most: int) -> int:
    """Samples of a tile, at most so many, if all are as even as can be."""
    return -(-samples // max(1, -(-samples // most))) or 1


def _up(n: int, to: int) -> int:
    return -(-n // to) * to


def whole_panels(samples: int, isa: str) -> int:
    """So many and more, that none of their panels is shared with others."""
    return _up(samples, _lanes(isa))


def _lanes(isa: str) -> int:
    return dict(core._C.instruction_sets()).get(isa, 16) // 4


def _shared_out(N: int, threads: int, tile: int) -> tuple[int, int]:
    """Samples of a tile, and tiles: one each, as even as can be, if that is all."""
    parts = -(-N // tile)
    return (-(-N // parts) if 0 < parts <= threads else tile), parts


def in_place(width: int, parts: int, threads: int) -> bool:
    """Whether weights are read where they lie, of so many tiles."""
    below, tiles = IN_PLACE
    return width < below and parts <= tiles * threads


def _together(width: int, columns: int, tile: int) -> int:
    return max(1, max(columns, TOGETHER // width) // tile)


def _saved(samples: int, with_gaps: int, without: int, streams: int, lanes: int) -> float:
    """The share of registers of samples that a thread saves without gaps between streams, with tiles of such sizes."""
    full, rest = divmod(samples, with_gaps)
    gaps = streams * (full * -(-with_gaps // lanes) + -(-rest // lanes))
    full, rest = divmod(samples, without)
    return 1 - (full * -(-streams * without // lanes) + -(-streams * rest // lanes)) / gaps


def set_plan(step, problem: Problem, N: int) -> str:
    """The instruction set to run on."""
    choices = dict(plan(problem, N).choices)
    isa = choices.pop("isa")
    core.set_plan(step, **choices)
    if problem.order > 1:
        told = problem.widths, problem.activations, problem.dtype, choices["group"] if problem.P else 0
        step.streams(jets.jets_of_second(*told, problem.collapsed))
    return isa


def step_of(
    problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]
) -> tuple[object, str]:
    """The whole of a step, and the instruction set to run it on."""
    step = core.step_of(problem, operands, outputs, gradients)
    return step, set_plan(step, problem, operands.x.shape[0])


def kept(
    problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]
) -> tuple[Callable[..., None], list[int], list[int]]:
    """What runs such a step again, told where it reads and writes, and its seed; and where this one does."""
    step, isa = step_of(problem, operands, outputs, gradients)
    return partial(core._C.mlp_sobolev_at, step, isa), *step.addresses()


def run(problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]) -> None:
    """Fill `outputs` (those of `ops.outputs_of`) and `gradients`, one for each parameter."""
    core._C.mlp_sobolev(*step_of(problem, operands, outputs, gradients))


def working_memory(problem: Problem, N: int) -> int:
    """Bytes that one call takes besides its inputs and outputs, and its thread keeps for the next."""
    step = core.step_of_shapes(problem, N)
    return core._C.working_memory(step, set_plan(step, problem, N))
