"""A loss of polynomials of named derivatives with all gradients, as one script: behind the pass for the streams a
kernel, written for the polynomials, goes from the outputs' streams to their cotangents, from which the pass for
gradients goes on. Another one sums what its programs leave."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import torch
import triton

from ...math.table import Formula
from ...partials.plan import Streams
from ...partials.programs import Asked, layers_of
from ...partials.tape import Applied, Recording, told
from ...problem import Operands
from .. import on_device_of
from .formulas import loss_of
from .jet_source import GENERATED, Kernel, jitted
from .jets import JetLayers, kept_by, problem_of, script_of, strides
from .script import At, Script, number

BLOCK, WARPS = 128, 4  # samples of a program of the loss
AT_A_TIME = 1024  # sums of programs that are summed at a time


@lru_cache(maxsize=256)
def without_numbers(recording: Recording) -> tuple[Recording, tuple[float, ...]]:
    """It with a name in the place of each number but 1 and -1, and these numbers: one that is another at each call must
    not make another kernel."""
    numbers: list[float] = []

    def name(c: float) -> float | str:
        if abs(c) == 1:
            return c
        numbers.append(c)
        return f"c{len(numbers) - 1}"

    sums = tuple(
        made if type(made) is Applied else tuple((a, b, name(c)) for a, b, c in made) for made in recording.sums
    )
    return recording._replace(sums=sums), tuple(numbers)


class Polynomials(NamedTuple):
    """A loss but for its tensors and numbers."""

    recording: Recording  # without numbers, and how many there were
    numbers: int
    columns: tuple[int, ...]  # of the inputs, that are read beside the results
    wanted: tuple[bool, ...]  # of results, columns and coefficients: whose adjoints; of none there are no gradients
    rho: Formula
    targets: tuple[bool, ...]  # of each term whether it has one
    learnt: tuple[bool, ...]  # and whether its weight is a tensor
    sampled: bool  # whether samples have weights
    D: int  # columns of the gradient of the inputs, if that is asked for

    @property
    def terms(self) -> int:
        return len(self.targets)

    @property
    def rows(self) -> int:
        """Sums of each program: of the terms, and of the gradients of coefficients."""
        return self.terms + self.recording.coefficients


class Read(NamedTuple):
    """The tensors of a call, ready to be read: `inputs` [N, D], of which columns are read, targets [N, 1], weights of
    samples [N], and of terms and coefficients one number each."""

    x: torch.Tensor
    v: torch.Tensor
    parameters: Sequence[torch.Tensor]
    inputs: torch.Tensor | None
    targets: Sequence[torch.Tensor]
    sample_weight: torch.Tensor | None
    weights: Sequence[torch.Tensor]
    coefficients: Sequence[torch.Tensor]

    def flat(self) -> list[torch.Tensor]:
        given = [self.v] * bool(len(self.v))
        alone = [tensor for tensor in (self.inputs, self.sample_weight) if tensor is not None]
        return [self.x, *self.parameters, *given, *self.targets, *alone, *self.weights, *self.coefficients]


class Made(NamedTuple):
    """What is filled: the loss, the terms [T], and gradients, those of coefficients [K], None of what is not asked."""

    loss: torch.Tensor
    terms: torch.Tensor
    dx: torch.Tensor | None
    dinputs: torch.Tensor | None
    dcoefficients: torch.Tensor | None
    gradients: Sequence[torch.Tensor]

    def flat(self) -> list[torch.Tensor]:
        return [tensor for tensor in self[:5] if tensor is not None] + [*self.gradients]


def product(term: tuple[int, int, float | str], one: int) -> str:
    a, b, c = term
    factors = [str(c)] * (c != 1) + [f"v{slot}" for slot in (a, b) if slot != one]
    return " * ".join(factors) or "1.0"


def sum_of(terms: Sequence[str]) -> str:
    return " + ".join(terms) or "tl.zeros((BLOCK,), tl.float32)"


def loss_kernel(of: Polynomials, streams: Streams, made: tuple[int, ...], O: int) -> tuple[Kernel, tuple[str, ...]]:
    """The kernel of one program for BLOCK samples, and the names of its arguments.

    H and BARS are the outputs' streams [made, N, O] and their cotangents, SUMS [rows, programs] what is left to sum. Of
    a sample of weight 0 nothing is read, and every adjoint is 0.
    """
    recording, R = of.recording, len(streams.outputs)
    programs, back = told(recording, of.wanted), any(of.wanted)
    one = recording.given + recording.coefficients
    places = {k: n for n, k in enumerate(made)}
    rows = [[(places[k], o, c) for k, o, c in row if k in places] for row in streams.outputs]
    lines = ["weight = tl.where(valid, 1.0, 0.0)"]
    if of.sampled:
        lines = ["weight = tl.load(SAMPLE_WEIGHT + sample * by_weight, mask=valid, other=0.0)"]
    lines += ["counting = weight != 0.0"]
    for n, o in sorted({(n, o) for row in rows for n, o, _ in row}):
        lines.append(f"h{n}_{o} = tl.load(H + ({n} * here + at + {o}), mask=counting, other=0.0)")
    for r, row in enumerate(rows):
        lines.append(f"v{r} = {sum_of([f'{c!r} * h{n}_{o}' if c != 1 else f'h{n}_{o}' for n, o, c in row])}")
    for i, column in enumerate(of.columns):
        lines.append(
            f"v{R + i} = tl.load(INPUTS + (sample * by_sample + {column} * by_column), mask=counting, other=0.0)"
        )
    lines += [f"v{recording.given + k} = tl.load(C{k})" for k in range(recording.coefficients)]
    sums = [f"v{to} = {sum_of([product(term, one) for term in terms])}" for to, terms in programs.values.sums]
    for name, argument, to, before in reversed(programs.functions):
        argument = "1.0 + tl.zeros((BLOCK,), tl.float32)" if argument == one else f"v{argument}"
        sums.insert(before, f"v{to} = function_{name}(tl.where(counting, {argument}, 1.0))")
    lines += sums
    for value, slope, t in programs.deviations:
        value, target = "1.0" if value == one else f"v{value}", "0.0"
        if of.targets[t]:
            target = f"tl.load(T{t} + sample * by_target{t}, mask=counting, other=0.0)"
        lines += [
            f"p{t}, slope{t} = residual(rho, tl.where(counting, ({value} - {target}) * unit{t}, 0.0))",
            f"tl.store(SUMS + ({t} * blocks + tl.program_id(0)), tl.sum(weight * p{t}, 0))",
        ]
        if back:
            by = f"tl.load(W{t})" if of.learnt[t] else f"weight{t}"
            lines.append(f"v{slope} = weight * slope{t} * (unit{t} * {by} * share)")
    if back:
        lines += [f"v{to} = {sum_of([product(term, one) for term in terms])}" for to, terms in programs.adjoint.sums]
        of_results, of_columns, of_coefficients = (
            programs.bars[:R], programs.bars[R : recording.given], programs.bars[recording.given :],
        )  # fmt: skip
        owed: dict[tuple[int, int], list[str]] = {(n, o): [] for n in range(len(made)) for o in range(O)}
        for row, bar in zip(rows, of_results, strict=True):
            for n, o, c in row:
                owed[n, o] += [product((bar, one, c), one)] * (bar >= 0)
        for (n, o), terms in owed.items():
            lines.append(f"tl.store(BARS + ({n} * here + at + {o}), {sum_of(terms)}, mask=valid)")
        of_column = dict(zip(of.columns, of_columns, strict=True))
        for d in range(of.D):
            bar = of_column.get(d, -1)
            lines.append(f"tl.store(DINPUTS + (sample * {of.D} + {d}), {sum_of([f'v{bar}'] * (bar >= 0))}, mask=valid)")
        for k, bar in enumerate(of_coefficients):
            if bar >= 0:
                lines.append(f"tl.store(SUMS + ({of.terms + k} * blocks + tl.program_id(0)), tl.sum(v{bar}, 0))")
    text = "\n    ".join((
        "sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)",
        f"valid, here, at = sample < N, N.to(tl.int64) * {O}, sample * {O}",
        "blocks = (N.to(tl.int64) - 1) // BLOCK + 1", *lines,
    ))  # fmt: skip
    T = range(of.terms)
    names = (
        "H", *["BARS"] * back, *["INPUTS"] * bool(of.columns), *["DINPUTS"] * bool(of.D), "SUMS",
        *["SAMPLE_WEIGHT"] * of.sampled, *(f"T{t}" for t in T if of.targets[t]),
        *(f"W{t}" for t in T if of.learnt[t]), *(f"C{k}" for k in range(recording.coefficients)), "N",
        *["by_sample", "by_column"] * bool(of.columns), *["by_weight"] * of.sampled,
        *(f"by_target{t}" for t in T if of.targets[t]), *(f"unit{t}" for t in T),
        *(f"weight{t}" for t in T if not of.learnt[t]), *(f"c{i}" for i in range(of.numbers)), "share", "rho",
    )  # fmt: skip
    of_batch = tuple(name for name in names if name in ("INPUTS", "SAMPLE_WEIGHT") or name[0] == "T")
    return jitted(f"({', '.join(names)}, BLOCK: tl.constexpr):\n    {text}\n", "loss", 0, anywhere=of_batch), names


def total_kernel(of: Polynomials) -> tuple[Kernel, tuple[str, ...]]:
    """The kernel of one program that sums the rows: the LOSS, its TERMS [T], and the gradients DC [K] of coefficients,
    which it gives if any is asked for."""
    lines, parts, T = ["blocks = (N.to(tl.int64) - 1) // BLOCK + 1"], [], range(of.terms)
    for t in T:
        by = f"tl.load(W{t}).to(tl.float64)" if of.learnt[t] else f"weight{t}"
        lines += [
            f"p{t} = row_sum(SUMS + {t} * blocks, blocks, AT_A_TIME) * share",
            f"tl.store(TERMS + {t}, p{t}.to(tl.float32))",
        ]
        parts.append(f"p{t} * {by}")
    lines.append(f"tl.store(LOSS, ({' + '.join(parts)}).to(tl.float32))")
    bars = told(of.recording, of.wanted).bars[of.recording.given :]
    asked = any(of.wanted[of.recording.given :])
    for k, bar in enumerate(bars if asked else ()):
        row = f"row_sum(SUMS + {of.terms + k} * blocks, blocks, AT_A_TIME).to(tl.float32)" if bar >= 0 else "0.0"
        lines.append(f"tl.store(DC + {k}, {row})")
    names = (
        "SUMS", "LOSS", "TERMS", *["DC"] * asked, *(f"W{t}" for t in T if of.learnt[t]), "N",
        *(f"weight{t}" for t in T if not of.learnt[t]), "share",
    )  # fmt: skip
    body = "\n    ".join(lines)
    constants = "BLOCK: tl.constexpr, AT_A_TIME: tl.constexpr"
    return jitted(f"({', '.join(names)}, {constants}):\n    {body}\n", "total", 0), names


def script_for(asked: Asked, of: Polynomials, mean: bool, read: Read, made: Made) -> Script:
    """The launches of a loss of tensors that lie like these; its numbers are 1 / scale of each term, their weights, and
    those of the polynomials."""
    reads, filled = read.flat(), made.flat()
    there = tuple(tensor is not None for tensor in made[:5])
    key = asked, "loss", of, mean, there, read.x.device, read.x.shape, read.v.shape, strides(reads)
    write = lambda script: written(script, asked, of, mean, read, made)  # noqa: E731
    with on_device_of(read.x):
        return script_of(key, read.x.device, len(reads) + len(filled), write)


def written(script: Script, asked: Asked, of: Polynomials, mean: bool, read: Read, made: Made) -> None:
    at, N, back = map(At, count()), read.x.shape[0], bool(made.gradients)
    places = lambda tensors: [next(at) for _ in tensors]  # noqa: E731
    there = lambda tensor: None if tensor is None else next(at)  # noqa: E731
    x, parameters, given = next(at), places(read.parameters), places([read.v] * bool(len(read.v)))
    targets, inputs, sample_weight = places(read.targets), there(read.inputs), there(read.sample_weight)
    weights, coefficients = places(read.weights), places(read.coefficients)
    loss, terms, dx, dinputs, dcoefficients = map(there, made[:5])
    gradients = places(made.gradients)
    operands = Operands(read.x, read.parameters, read.v if given else None)
    kept = [script.room(S, N, n, dtype=dtype) for S, n, dtype in kept_by(asked)] if back else []
    problem = problem_of(asked, read.x.device.type, read.v.dim() == 2)
    layers = JetLayers(script, asked, problem, operands, Operands(x, parameters, *given), kept)
    h, blocks = layers.forward(), triton.cdiv(N, BLOCK)
    sums = script.room(of.rows, blocks)
    bars = layers.room_of_adjoints() if back else None
    T = range(of.terms)
    by_name = {
        "H": h, "BARS": bars, "INPUTS": inputs, "DINPUTS": dinputs, "SUMS": sums, "SAMPLE_WEIGHT": sample_weight,
        "N": N, "share": 1 / N if mean else 1.0, "rho": loss_of(of.rho, 1.0, 1.0), "LOSS": loss, "TERMS": terms,
        "DC": dcoefficients, **{f"C{k}": place for k, place in enumerate(coefficients)},
        **{f"unit{t}": number(t) for t in T}, **{f"weight{t}": number(of.terms + t) for t in T},
        **{f"c{i}": number(2 * of.terms + i) for i in range(of.numbers)},
        **dict(zip((f"W{t}" for t in T if of.learnt[t]), weights, strict=True)),
        **dict(zip((f"T{t}" for t in T if of.targets[t]), targets, strict=True)),
    }  # fmt: skip
    if inputs is not None:
        by_name |= dict(zip(("by_sample", "by_column"), read.inputs.stride(), strict=True))
    if sample_weight is not None:
        by_name["by_weight"] = read.sample_weight.stride(0)
    of_targets = (f"by_target{t}" for t in T if of.targets[t])
    by_name |= {name: target.stride(0) for name, target in zip(of_targets, read.targets, strict=True)}
    made_streams = layers_of(asked.streams, asked.activations)[-1].made
    kernel, names = loss_kernel(of, asked.streams, made_streams, asked.widths[-1])
    script.launch(
        GENERATED, kernel.name, (blocks,), *(by_name[name] for name in names), BLOCK=BLOCK, num_warps=WARPS
    )  # fmt: skip
    if back:
        layers.all_gradients(bars, dx, None, gradients, True)
    kernel, names = total_kernel(of)
    script.launch(
        GENERATED, kernel.name, (1,), *(by_name[name] for name in names), BLOCK=BLOCK, AT_A_TIME=AT_A_TIME,
        num_warps=WARPS,
    )  # fmt: skip
