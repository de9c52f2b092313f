"""Two processes, each with half of a batch, have the gradients that one has of the whole; their directions too."""

import queue
import re
import subprocess
import sys
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import sobolev_kernels as sk
from python_tests.students import Call
from sobolev_kernels.testing.rule import ANOTHER_WAY

N, D, O, WORLD = 8, 4, 2, 2
DTYPE = torch.float64
STUDENTS = {
    "an MLP": lambda: sk.MLP(D, O, width=8, depth=2).to(DTYPE),
    "another": lambda: nn.Sequential(
        nn.Linear(D, 6), nn.LayerNorm(6), nn.Tanh(), Call(lambda x, a: x[:, :O] + a(x), nn.Linear(6, O))
    ).to(DTYPE),
}  # fmt: skip
ALONG = {
    "drawn": {"directions": sk.Directions.sphere(2)},
    "seeded": {"directions": sk.Directions.normal(2, seed=3)},
    "orthonormal": {"directions": sk.Directions.orthonormal(2, seed=3)},
    "shared": {"directions": sk.Directions.normal(2, seed=3, shared=True)},
    "cotangents": {"cotangents": sk.Cotangents.rademacher(2, seed=3)},
    "exact": {"derivatives": "exact"},
}


def ddp(student: nn.Module) -> nn.Module:
    return DistributedDataParallel(student)


def at_the_root(student: nn.Module) -> nn.Module:
    return fully_shard(student, mesh=init_device_mesh("cpu", (WORLD,)))


def inside(student: nn.Module) -> nn.Module:
    for part in student:
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=init_device_mesh("cpu", (WORLD,)))
    return at_the_root(student)


WRAPPERS = {"DDP": ddp, "FSDP at the root": at_the_root, "FSDP inside": inside}
# gradients of the outputs would be differentiated again, which FSDP cannot follow where it frees parameters in between
REFUSED = {("another", "FSDP at the root"), ("another", "FSDP inside"), ("an MLP", "FSDP inside")}


def part_of(rank: int, of: int) -> tuple[torch.Tensor, sk.Targets]:
    generator = torch.Generator().manual_seed(5)
    shapes = (N, D), (N, O), (N, O, D)
    x, values, jacobian = (torch.randn(shape, generator=generator, dtype=DTYPE).chunk(of)[rank] for shape in shapes)
    return x, sk.Targets(values=values, jacobian=jacobian)


def gradients(name: str, along: str, wrap, rank: int, of: int) -> list[torch.Tensor]:
    """Of the third of three steps."""
    torch.manual_seed(1)
    student, (x, targets) = STUDENTS[name](), part_of(rank, of)
    wrapped = wrap(student)
    for step in range(3):
        torch.manual_seed(step)
        student.zero_grad()
        sk.sobolev_loss(wrapped, x.clone(), targets, **ALONG[along]).backward()
    whole = [getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for p in student.parameters()]
    return [gradient.clone() for gradient in whole]


def communicated(name: str, wrap, rank: int) -> list[list[tuple[str, str]]]:
    """The collectives of a third step, of a Sobolev loss and of one of values alone, with their sizes."""
    student, (x, targets) = STUDENTS[name](), part_of(rank, WORLD)
    wrapped, found = wrap(student), []
    sobolev = lambda: sk.sobolev_loss(wrapped, x.clone(), targets, **ALONG["drawn"])  # noqa: E731
    for loss in (sobolev, lambda: (wrapped(x) - targets.values).square().mean()):
        for _ in range(3):
            student.zero_grad()
            with torch.profiler.profile(record_shapes=True) as profile:
                loss().backward()
        events = [(event.name, str(event.input_shapes)) for event in profile.events()]
        found.append(sorted(event for event in events if event[0].startswith(("c10d::", "gloo:"))))
    return found


def summed(rank: int) -> list[list[float]]:
    """Of two halves, of which the first is not communicated."""
    torch.manual_seed(1)
    student, (x, targets) = STUDENTS["an MLP"](), part_of(rank, WORLD)
    wrapped = ddp(student)
    for half, around in zip((slice(0, 2), slice(2, 4)), (wrapped.no_sync, nullcontext), strict=True):
        with around():
            of_half = sk.Targets(values=targets.values[half], jacobian=targets.jacobian[half])
            (sk.sobolev_loss(wrapped, x[half], of_half, derivatives="exact") / 2).backward()
    return [p.grad.tolist() for p in student.parameters()]


def work(rank: int, store: str, results) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    torch.set_num_threads(1)
    found = {}
    try:
        for name in STUDENTS:
            for along in ALONG:
                for way, wrap in WRAPPERS.items():
                    try:
                        found[name, along, way] = [g.tolist() for g in gradients(name, along, wrap, rank, WORLD)]
                    except Exception as error:
                        found[name, along, way] = f"{type(error).__name__}: {error}"
        for name, way in product(STUDENTS, WRAPPERS):
            found["communicated", name, way] = communicated(name, WRAPPERS[way], rank)
        found["summed"] = summed(rank)
        like = torch.zeros(N // WORLD, D, dtype=DTYPE)
        found["directions"] = sk.Directions.sphere(2, seed=1).tensor(like).tolist()
        found["numbered"] = sk.Directions.sphere(2, seed=1).numbered_from(0).tensor(like).tolist()
    finally:
        results.put((rank, found))
        distributed.barrier()
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, dict]:
    context = multiprocessing.get_context("spawn")
    results, store = context.Queue(), str(tmp_path_factory.mktemp("ranks") / "store")
    processes = [context.Process(target=work, args=(rank, store, results)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    try:
        return dict(results.get(timeout=240) for _ in processes)
    except queue.Empty:
        pytest.fail("the processes have not come to an end")
    finally:
        for process in processes:
            process.join(30)
            process.kill()


@pytest.mark.parametrize("along", ALONG)
@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.filterwarnings("ignore::sobolev_kernels.errors.SobolevWarning")
def test_gradients_are_those_of_one_process(found, name, along):
    expected = gradients(name, along, lambda student: student, 0, 1)
    for way in WRAPPERS:
        for rank in range(WORLD):
            got = found[rank][name, along, way]
            if along == "cotangents" and (name, way) in REFUSED:
                assert got.startswith("NotProvided: backend: expected reference") and "FSDP" in got, got
                continue
            assert not isinstance(got, str), (way, got)
            for ours, theirs in zip(got, expected, strict=True):
                torch.testing.assert_close(torch.tensor(ours, dtype=DTYPE), theirs, **ANOTHER_WAY)


@pytest.mark.parametrize("way", WRAPPERS)
@pytest.mark.parametrize("name", STUDENTS)
def test_nothing_else_is_communicated(found, name, way):
    for rank in range(WORLD):
        ours, ordinary = found[rank]["communicated", name, way]
        assert ours == ordinary and any(event.startswith("gloo:") for event, _ in ours)


def test_gradients_that_are_summed_before_they_are_communicated(found):
    expected = gradients("an MLP", "exact", lambda student: student, 0, 1)
    for rank in range(WORLD):
        got = [torch.tensor(gradient, dtype=DTYPE) for gradient in found[rank]["summed"]]
        torch.testing.assert_close(got, expected, **ANOTHER_WAY)


def test_a_part_of_a_batch_has_its_part_of_the_draw(found):
    directions = sk.Directions.sphere(2, seed=1)
    whole = directions.tensor(torch.zeros(N, D, dtype=DTYPE))
    for rank, part in enumerate(whole.chunk(WORLD, 1)):
        assert torch.equal(torch.tensor(found[rank]["directions"], dtype=DTYPE), part)
        assert torch.equal(torch.tensor(found[rank]["numbered"], dtype=DTYPE), whole[:, : N // WORLD])
        like = torch.zeros(N // WORLD, D, dtype=DTYPE)
        assert torch.equal(directions.numbered_from(rank * N // WORLD).tensor(like), part)


@pytest.mark.parametrize("distribution", ["sphere", "normal", "rademacher", "coordinate", "orthonormal"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_steps_of_a_part_go_along_its_part(distribution, backend):
    student, (x, _) = STUDENTS["an MLP"](), part_of(0, 1)
    directions = getattr(sk.Directions, distribution)(2, seed=2**40 + 7).at(3)
    whole = sk.jvp(student, x, directions, backend=backend)[1]
    for _ in range(2):
        part = sk.jvp(student, x[5:], directions.numbered_from(5), backend=backend)[1]
        torch.testing.assert_close(part, whole[:, 5:], **ANOTHER_WAY)


@pytest.mark.parametrize("first", [-1, 2**31, 0.5, True])
def test_no_number_of_a_sample(first):
    with pytest.raises(ValueError, match="first: expected None or an integer in"):
        sk.Directions.sphere(1).numbered_from(first)


def test_the_example():
    example = Path(__file__).parent.parent / "examples" / "ddp.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}", str(example)]
    run = subprocess.run([*command, "--steps", "4", "--samples", "16"], capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    assert f"{WORLD} processes (" in run.stdout and "8 samples of a batch in each" in run.stdout
    assert float(re.search(r"gradients: within (\S+) of", run.stdout)[1]) < 64 * torch.finfo(torch.float32).eps
    alone = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, timeout=200)
    assert alone.returncode == 2 and "torchrun --nproc-per-node=2" in alone.stderr
