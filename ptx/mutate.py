"""PTX broken on purpose: a check that passes a mutant does not check."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import copy
from dataclasses import replace

from .run import Module, handler, load

BARRIER = re.compile(r"^\s*(?:@!?%\w+\s+)?(?:bar|barrier)\.(?:sync|warp\.sync)\b[^;]*;", re.M)
WAIT = re.compile(r"^(\s*cp\.async\.wait_group\s+)(\w+)(\s*;)", re.M)
MASK = re.compile(r"@!?%\w+\s+((?:ld|st|atom|red)\.global\b)")
COPY_MASK = re.compile(r"(cp\.async\.\w+\.shared\.global[^;]*,\s*(?:0x)?\w+)\s*,\s*%\w+\s*;")


def without(ptx: str, m: re.Match, kept: str) -> str:
    return ptx[: m.start()] + kept + ptx[m.end() :]


def where(ptx: str, m: re.Match) -> str:
    start = m.start() + len(m[0]) - len(m[0].lstrip())
    return f"PTX line {ptx.count(chr(10), 0, start) + 1}"


def barriers(ptx: str) -> Iterator[tuple[str, str]]:
    """Each barrier deleted."""
    for m in BARRIER.finditer(ptx):
        yield f"no {' '.join(m[0].split())} ({where(ptx, m)})", without(ptx, m, "")


def programs_without_barriers(ptx: str) -> Iterator[tuple[str, Module]]:
    """The same of a text that is long, which is read once: what stands for the barrier in a program does nothing."""
    module, nop = load(ptx), handler("nop")
    lines = ptx.split("\n")
    for program in map(module.program, module.kernels):
        places: dict[int, list[int]] = {}  # of one in a function that is called, where each call stands
        for pc, location in enumerate(program.locations):
            if location.ptx_line and BARRIER.match(lines[location.ptx_line - 1]):
                places.setdefault(location.ptx_line, []).append(pc)
        for line, pcs in places.items():
            code, mutant = program.code.copy(), copy(module)
            code["handler"][pcs] = nop
            mutant.programs = module.programs | {program.name: replace(program, code=code)}
            yield f"no {' '.join(lines[line - 1].split())} (PTX line {line})", mutant


def waits(ptx: str) -> Iterator[tuple[str, str]]:
    """Each wait for asynchronous copies one group too short."""
    for m in WAIT.finditer(ptx):
        n = int(m[2], 0)
        yield f"wait_group {n + 1} for {n} ({where(ptx, m)})", without(ptx, m, f"{m[1]}{n + 1}{m[3]}")


def masks(ptx: str) -> Iterator[tuple[str, str]]:
    """Each global access without its mask."""
    for m in MASK.finditer(ptx):
        yield f"no mask on {m[1]} ({where(ptx, m)})", without(ptx, m, m[1])
    for m in COPY_MASK.finditer(ptx):
        yield f"no mask on cp.async ({where(ptx, m)})", without(ptx, m, m[1] + ";")


def mutants(ptx: str, kinds: tuple = (barriers, waits, masks)) -> Iterator[tuple[str, str]]:
    """(name, ptx) for each way of breaking it that is known here."""
    for kind in kinds:
        yield from kind(ptx)
