"""Convolutions of small images by the core: what they give and their ways back, beside PyTorch's in float64."""

import pytest
import torch

from sobolev_kernels.backends import core
from sobolev_kernels.streams import convolved, images
from sobolev_kernels.streams.singles.convolution import TABLE
from sobolev_kernels.testing.rule import IN_SINGLE

pytestmark = pytest.mark.skipif(core.MISSING is not None, reason="no core")
# sizes of a sample, channels that come of it, kernel, and the arguments of nn.functional's convolutions after the bias
CASES = {
    "3×3": ((1, 8, 8), 6, (3, 3), (1, 1)),
    "no padding": ((6, 4, 4), 16, (3, 3), ()),
    "in steps, the last column for nothing": ((3, 6, 7), 5, (3, 2), (2, (1, 0))),
    "steps wider than the kernel": ((2, 7, 7), 3, (2, 2), (3,)),
    "dilated": ((4, 7, 6), 2, (2, 3), (1, (2, 1), (2, 3))),
    "steps and dilation": ((2, 9, 8), 3, (3, 3), (2, 2, 2)),
    "margins wider than the kernel": ((2, 3, 2), 3, (2, 2), (1, 3)),
    "a kernel as large as the image": ((3, 4, 5), 7, (4, 5), ()),
    "one position": ((33, 1, 1), 17, (1, 1), ()),
    "many channels": ((17, 3, 3), 19, (2, 2), (1, 1)),
    "one dim": ((3, 9), 5, (3,), (2, 1)),
    "transposed": ((6, 4, 4), 5, (2, 2), (2,), True),
    "transposed, uneven": ((2, 4, 3), 3, (3, 2), ((2, 1), 1, (1, 0), 1, (1, 2)), True),
    "transposed, one dim": ((4, 5), 3, (3,), (2, 1, 1), True),
}


def told_of(x, weight, of):
    return images.Convolution.of_tensors(x, weight, of).told


def case_of(name, N):
    sizes, O, kernel, after, transposed = (*CASES[name], False)[:5]
    torch.manual_seed(N)
    of = images.arguments_of(len(kernel), transposed, *after)
    weight = (sizes[0], O, *kernel) if transposed else (O, sizes[0], *kernel)
    x, weight, bias = (torch.randn(shape) for shape in ((N, *sizes), weight, (O,)))
    convolution = images.Convolution.of_tensors(x, weight, of)
    assert convolution.told is not None
    return x, weight, bias, convolution


def assert_close(got, right):
    assert got.shape == right.shape
    assert (got - right).abs().max() <= IN_SINGLE * right.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("N", [1, 5, 67])
@pytest.mark.parametrize("name", CASES)
def test_as_in_float64(name, N):
    x, weight, bias, of = case_of(name, N)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    y = torch.convolution(*exact, *of.of)
    assert_close(of.made(x, weight, bias), y)
    assert_close(of.made(x, weight, None), y - exact[2].view(-1, *[1] * (y.dim() - 2)))
    bar = torch.randn(y.shape)
    right = torch.autograd.grad(y, exact, bar.double())
    for asked in ((True, True, True), (True, False, False), (False, True, False), (False, False, True)):
        found = of.back(bar, x, weight, asked)
        for got, expected, wanted in zip(found, right, asked, strict=True):
            assert (got is None) != wanted
            if wanted:
                assert_close(got, expected)
    strided = bar.transpose(0, 1).contiguous().transpose(0, 1)
    dbar, dweight = of.both(x, bar.transpose(0, 1).contiguous().transpose(0, 1), weight, (True, True))
    assert_close(dbar, torch.convolution(exact[0], exact[1], None, *of.of))
    assert_close(dweight, right[1])
    assert_close(of.back(strided, x, weight, (True, True, True))[1], right[1])


def test_threads_share_the_samples():
    x, weight, bias, of = case_of("no padding", 67)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            of = images.Convolution.of_tensors(x, weight, of.of)
            y = of.made(x, weight, bias)
            found.append([y, *of.back(y, x, weight, (True, True, True))])
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*found, strict=True):
        assert_close(one, other)


def test_every_instruction_set():
    x, weight, bias, of = case_of("transposed, uneven", 19)
    right = torch.convolution(x.double(), weight.double(), bias.double(), *of.of)
    for isa, _ in core._C.instruction_sets():
        told = images.told(x.shape[1:], weight.shape, of.of, 1, isa)
        y, dweight = torch.empty_like(right, dtype=torch.float32), torch.empty_like(weight)
        told.run(x, None, weight, bias=bias, to_y=y)
        assert_close(y, right)
        told.run(x, y, weight, dweight=dweight)
        exact = images.aten_back(right, x.double(), weight.double(), bias.shape, *of.of, [False, True, False])[1]
        assert_close(dweight, exact)


def test_what_is_pytorchs():
    like = lambda *shape: torch.empty(shape)  # noqa: E731
    of = images.arguments_of(2, False, 1, 1)
    assert told_of(like(2, 4, 8, 8), like(6, 2, 3, 3), images.arguments_of(2, False, groups=2)) is None
    assert told_of(like(2, 4, 5, 5, 5), like(6, 4, 3, 3, 3), images.arguments_of(3, False)) is None
    assert told_of(like(2, 1, 99, 99), like(6, 1, 3, 3), of) is None, "large images"
    assert told_of(like(2, 99, 8, 8), like(99, 99, 3, 3), of) is None, "large kernels"
    assert told_of(like(2, 4, 2, 2), like(6, 4, 3, 3), images.arguments_of(2, False)) is None, "no position"
    assert told_of(like(2, 5, 8, 8), like(6, 4, 3, 3), of) is None, "other channels"


def test_pairs_lie_side_by_side_or_apart():
    x, weight, _, of = case_of("in steps, the last column for nothing", 5)
    whole = torch.randn(3 * 5, *x.shape[1:])
    v, d = convolved.apart(whole, 5)
    apart = v.clone(), d.clone()
    y = of.made(whole, weight, None)
    bars, (dx, dweight, _) = convolved.apart(y, 5), of.back(y, whole, weight, (True, True, False))
    for pair, of_bars in ((v, d), bars), (apart, bars), (apart, (bars[0].clone(), bars[1])):
        assert len(convolved.parts_of(pair)) == (1 if pair[0] is v else 2)
        assert torch.equal(convolved.made(of, *pair, weight), y)
        found = convolved.back(of, of_bars, *pair, weight, (True, True))
        assert_close(found[0], dx)
        assert_close(found[1], dweight)
        assert convolved.back(of, of_bars, *pair, weight, (False, True))[0] is None
        assert convolved.back(of, of_bars, *pair, weight, (True, False))[1] is None


def test_of_other_dtypes_pairs_are_pytorchs():
    x, weight, bias, of = case_of("3×3", 3)
    v = torch.randn(2, *x.shape)
    of = of.of
    assert convolved.together_of(x, v, weight, bias, of) is not None
    assert convolved.together_of(x.double(), v.double(), weight.double(), bias.double(), of) is None
    assert convolved.together_of(x[:0], v[:, :0], weight, bias, of) is None, "an empty batch"
    assert convolved.together_of(x, v, weight.transpose(2, 3), bias, of) is None, "a weight with gaps"


@pytest.mark.parametrize("shape", [(), (1,), (5,), (7,), (6, 1)])
def test_a_bias_that_pytorch_refuses(shape):
    x, weight, _, of = case_of("3×3", 3)
    v, bias = torch.randn(2, *x.shape), torch.randn(shape)
    assert convolved.together_of(x, v, weight, bias, of.of) is None
    single = TABLE[torch.conv2d]
    assert single.made(x, weight, torch.randn(6), 1, 1) is not None
    assert single.made(x, weight, bias, 1, 1) is None


def test_margins_that_pytorch_refuses():
    x, weight, _, of = case_of("transposed", 3)
    for more in (-1, 2):
        assert told_of(x, weight, (*of.of[:4], (more, 0), 1)) is None
    assert told_of(x, weight, (of.of[0], (-1, 0), *of.of[2:])) is None
