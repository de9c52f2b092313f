"""The errors of the one launch in every precision: `python -m ptx.triton_errors` prints the table of
docs/triton.md, from the compiled sm_80 kernels on the PTX machine."""

import torch

import sobolev_kernels as sk
from sobolev_kernels.enums import PRECISIONS
from sobolev_kernels.testing import multiplies_in
from sobolev_kernels.testing.compare import step
from sobolev_kernels.testing.problems import Shape, data, directions_of

from .triton_on_ptx import on_ptx

SHAPE = Shape(128, 16, 64, 3, 4, 2, "of the bench's first cases, fewer samples")


def relative(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[float]:
    """Of the loss, its derivative term, and all gradients together: |got - expected| / |expected|."""
    parts = [["loss"], ["derivative"], [name for name in expected if name.startswith("d") and name != "derivative"]]
    stack = lambda tensors, names: torch.cat([tensors[name].double().flatten() for name in names])  # noqa: E731
    return [float((stack(got, p) - stack(expected, p)).norm() / stack(expected, p).norm()) for p in parts]


def main() -> None:
    print("| precision | loss | derivative term | gradients | gradients, PyTorch with rounded products |")
    print("|---|---|---|---|---|")
    numbers, directions = data(SHAPE, "tanh"), directions_of("sphere", SHAPE)
    v = directions.tensor(numbers.x)
    expected = step(numbers.to(torch.float64), sk.Directions.given(v.double()), "reference")
    for precision in PRECISIONS:
        with multiplies_in(precision):
            plain = step(numbers, sk.Directions.given(v), "reference")
        with on_ptx():
            got = step(numbers, directions, "triton", precision=precision)
        cells = [*relative(got, expected), relative(plain, expected)[2]]
        print(f"| {precision} | {' | '.join(f'{cell:.1e}' for cell in cells)} |", flush=True)


if __name__ == "__main__":
    main()
