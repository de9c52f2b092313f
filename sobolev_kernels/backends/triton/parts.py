"""Values, first and second derivatives as parts of the outputs' stacked streams: out of them, and into their adjoints.

As in `elementwise.py`, the kernels have no variants for a number of samples.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["size", "P", "skip", "terms"])
def results_kernel(H, Y, FIRST, SECOND, size, P, skip, terms, BLOCK: tl.constexpr):
    """Y, P streams FIRST, if it is there, and then SECOND, of so many numbers a stream, out of H, whose streams after Y
    are counted from the skip-th on; each is the sum of so many `terms` in a row. A program's second number is that of
    the stream."""
    i, stream = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    size, valid = size.to(tl.int64), i < size
    if stream == 0:
        tl.store(Y + i, tl.load(H + i, mask=valid, other=0.0), mask=valid)
    else:
        total = tl.zeros((BLOCK,), tl.float32)
        for t in range(terms):
            total += tl.load(H + (stream + skip + t) * size + i, mask=valid, other=0.0)
        if FIRST is not None:
            if stream <= P:
                tl.store(FIRST + (stream - 1) * size + i, total, mask=valid)
        if SECOND is not None:
            if stream > P:
                tl.store(SECOND + (stream - 1 - P) * size + i, total, mask=valid)


@triton.jit(
    do_not_specialize=["N", "P", "sy_n", "sy_o", "sf_p", "sf_n", "sf_o", "ss_p", "ss_n", "ss_o"],
    do_not_specialize_on_alignment=["Y", "FIRST", "SECOND"],
)
def slopes_kernel(Y, FIRST, SECOND, OUT, N, O, P, sy_n, sy_o, sf_p, sf_n, sf_o, ss_p, ss_n, ss_o, BLOCK: tl.constexpr):
    """OUT [streams, N, O]: Y, P streams FIRST and then SECOND, of any strides; 0 of what is not there. A program's
    second number is that of the stream."""
    i, stream = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1).to(tl.int64)
    count, sample, o = N.to(tl.int64) * O, i // O, i % O
    valid, numbers = i < count, tl.zeros((BLOCK,), tl.float32)
    if Y is not None:
        if stream == 0:
            numbers = tl.load(Y + sample * sy_n + o * sy_o, mask=valid, other=0.0)
    if FIRST is not None:
        if (stream > 0) & (stream <= P):
            numbers = tl.load(FIRST + (stream - 1) * sf_p + sample * sf_n + o * sf_o, mask=valid, other=0.0)
    if SECOND is not None:
        if stream > P:
            numbers = tl.load(SECOND + (stream - 1 - P) * ss_p + sample * ss_n + o * ss_o, mask=valid, other=0.0)
    tl.store(OUT + stream * count + i, numbers, mask=valid)
