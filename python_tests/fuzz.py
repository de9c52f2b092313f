"""`python -m python_tests.fuzz --seconds 60 --seed 1`: random calls beside an oracle written with torch.func alone.

A case is a function of (seed, number). A finding prints the command that shows it again; with `--case` that command
runs one case, and `--shrink` looks for the plainest case that still fails.
"""

from __future__ import annotations

import argparse
import ast
import faulthandler
import sys
import time
from collections import Counter
from dataclasses import replace

import torch

from python_tests.fuzzing.cases import Case, case_of, faults, simpler
from python_tests.fuzzing.compare import backends_of, run


def shrunk(case: Case, backends: list[str] | None = None) -> Case:
    """The plainest case that still has a finding."""
    tried = {case}
    found = True
    while found:
        found = False
        for candidate in simpler(case):
            if candidate in tried or faults(candidate):
                continue
            tried.add(candidate)
            if run(candidate, backends).findings:
                case, found = candidate, True
                break
    return case


def changed(case: Case, text: str | None) -> Case:
    """The case with other fields, told as `name=value, name=value`."""
    if not text:
        return case
    call = ast.parse(f"f({text})", mode="eval").body
    return replace(
        Case(seed=case.seed, number=case.number), **{k.arg: ast.literal_eval(k.value) for k in call.keywords}
    )


def report(case: Case, findings: list[str], arguments: argparse.Namespace) -> None:
    command = f"python -m python_tests.fuzz --seed {case.seed} --case {case.number}"
    command += f" --backend {arguments.backend}" if arguments.backend else ""
    print(f"\n{command}\n  {case.changes()}")
    print("".join(f"  {finding}\n" for finding in findings), end="", flush=True)
    if arguments.shrink:
        backends = arguments.backend and [arguments.backend]
        case = shrunk(case, backends)
        print(f'  shrunk: {command} --set "{case.changes()}"')
        print("".join(f"    {finding}\n" for finding in run(case, backends).findings), end="", flush=True)


def summary(
    cases: Counter, compared: Counter, refusals: Counter, findings: Counter, seconds: float, cpu: float
) -> None:
    print(f"\n{'kind':48}{'cases':>8}{'runs':>8}{'findings':>10}")
    for kind, count in sorted(cases.items()):
        print(f"{kind:48}{count:8}{compared[kind]:8}{findings[kind]:10}")
    total = sum(cases.values())
    print(f"{'all':48}{total:8}{sum(compared.values()):8}{sum(findings.values()):10}")
    rate, of_cpu = (60 * total / max(s, 1e-9) for s in (seconds, cpu))
    print(f"{rate:.0f} cases a minute, {of_cpu:.0f} of a processor's time; {sum(refusals.values())} refused:")
    for words, count in refusals.most_common():
        print(f"{count:8}  {words}")


def fuzz(arguments: argparse.Namespace) -> int:
    """How many cases had findings."""
    cases, compared, refusals, findings = Counter(), Counter(), Counter(), Counter()
    start, cpu = time.monotonic(), time.process_time()
    for number in range(arguments.first, arguments.first + arguments.cases):
        if time.monotonic() - start > arguments.seconds:
            break
        case = case_of(arguments.seed, number)
        backends = [b for b in backends_of(case) if arguments.backend in (None, b)]
        if not backends:
            continue
        if arguments.trace:
            print(number, file=sys.stderr, flush=True)
        outcome = run(case, backends)
        cases[case.kind] += 1
        compared[case.kind] += outcome.compared
        refusals.update(outcome.refusals)
        if outcome.findings:
            findings[case.kind] += 1
            report(case, outcome.findings, arguments)
    summary(cases, compared, refusals, findings, time.monotonic() - start, time.process_time() - cpu)
    return sum(findings.values())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this case alone")
    parser.add_argument("--first", type=int, default=0, help="the number to begin with")
    parser.add_argument("--cases", type=int, default=10**9, help="so many at most")
    parser.add_argument("--backend", help="this one alone, in the cases that it runs (triton: with TRITON_INTERPRET=1)")
    parser.add_argument("--set", help="the case with these fields, the others plain: what --shrink prints")
    parser.add_argument("--shrink", action="store_true", help="look for the plainest case that still fails")
    parser.add_argument("--trace", action="store_true", help="say each case's number before it is run")
    arguments = parser.parse_args(arguments)
    if arguments.case is None:
        return bool(fuzz(arguments))
    case = changed(case_of(arguments.seed, arguments.case), arguments.set)
    outcome = run(case, arguments.backend and [arguments.backend])
    if outcome.findings:
        report(case, outcome.findings, arguments)
    else:
        print(f"{case.changes()}: nothing found, refused {outcome.refusals}")
    return bool(outcome.findings)


if __name__ == "__main__":
    faulthandler.enable()
    torch.set_num_threads(1)
    raise SystemExit(main())
