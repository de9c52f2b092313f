"""Pairs through what has no rule of its own but a proved jvp, through whole recurrent layers, matrices and vectors.

Each against differences of the forward, as the rules in test_streams.py.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import rnn

import sobolev_kernels as sk
from python_tests.students import Call
from python_tests.test_streams import CASES, INDEX, KERNEL, MASK, WEIGHT, B, C, D, N, assert_right, differences, numbers
from sobolev_kernels.backends.streams import propagated
from sobolev_kernels.streams.flowing import name_of
from sobolev_kernels.streams.trusted import TRUSTED
from sobolev_kernels.testing.rule import ANOTHER_WAY, BY_DIFFERENCES

f64 = torch.float64
PLACES = torch.tensor([[1, 0, 1, 0]])
special, linalg = torch.special, torch.linalg


def square(h):
    """[N, 4, 4], positive definite."""
    return h.mT @ h / 9 + torch.eye(4, dtype=h.dtype)


def like(h):
    return C.sigmoid().expand_as(h)


# Of h [N, 2, 4]
PROVED = {
    "cumulated": lambda h: h.logcumsumexp(1) + h.cummax(-1)[0] + h.cummin(-1).values,
    "two numbers": lambda h: (
        torch.atan2(h, C) + torch.arctan2(C, h * h + 1) + torch.hypot(h, C) + torch.xlogy(h, h * h + 1)
        + torch.logaddexp(h, C) + torch.logaddexp2(C, h) + torch.lerp(h, C, 0.3) + torch.lerp(C, h, h.sin())
        + torch.copysign(h, C) + torch.ldexp(h, torch.tensor(2)) + special.xlog1py(h, h * h)
    ),
    "powers": lambda h: (h * h + 1) ** (h / 3) + (h * h) ** C.abs() + 2**h + torch.float_power(h * h + 1, 1.3),
    "vectors": lambda h: (
        h[:, 0].mv(C)[:, None] + torch.mv(B, h[0, 0]) + h[0, 0].dot(h[1, 1]) + h[0, 0].vdot(h[0, 1])
        + torch.inner(h[:, 0], B) + torch.addmv(C, B, h[0, 0]) + h[0, :, :2].trace()
    )[:, None],
    "outer": lambda h: torch.outer(h[0, 0], h[1, 1]) + torch.addr(B, h[0, 0], h[1, 1]) + h[0, :, :2].kron(B[:2, :2]),
    "cross": lambda h: torch.cross(h[..., :3], h[..., 1:], -1) + linalg.cross(h[..., :3], h[..., 1:]),
    "tensordot": lambda h: torch.tensordot(h, B, 1) + torch.einsum("...ij,jk", h, B),
    "addbmm": lambda h: torch.addbmm(B[:2, :2], h, h.mT) + torch.addcdiv(h, h, h * h + 1)[0, :, :2],
    "rest": lambda h: torch.fmod(h * 3, 2) + torch.remainder(h * 3, 2) + h.frac() + h.rad2deg() + h.deg2rad(),
    "sorted": lambda h: h.sort(-1)[0] + torch.sort(h, 1).values * 2 + torch.msort(h),
    "chosen": lambda h: h.topk(2, -1)[0] + h.median(-1, True).values + h.kthvalue(2, -1, True)[0] + h.quantile(0.3),
    "extremes": lambda h: h.aminmax(dim=-1)[0] + h.max(-1).values + h.min(-1).values,
    "sums": lambda h: (
        h.nansum(-1) + h.nanmean(-1) + torch.trapezoid(h) + torch.trapz(h)
        + torch.std_mean(h, -1)[0] + torch.var_mean(h, -1)[1]
    ),
    "diff": lambda h: h.diff(dim=-1) + torch.cumulative_trapezoid(h) + torch.gradient(h, dim=2)[0][..., :3],
    "scattered": lambda h: (
        h.scatter(2, PLACES.expand(len(h), 2, 4), C.expand(len(h), 2, 4))
        + h.scatter_add(2, PLACES.expand(len(h), 2, 4), h * h) + h.index_add(2, INDEX, h[..., :3] ** 2)
        + h.index_copy(2, INDEX, h[..., :3] ** 2) + h.index_fill(2, INDEX, 0.0) + h.masked_scatter(MASK, h * h)
        + h.put(INDEX, h[0, 0, :3] ** 2)
        + (h * 1.0).scatter_(2, PLACES.expand(len(h), 2, 4), 2.0) + (h * 1.0).index_add_(2, INDEX, h[..., :3] ** 2)
        + torch.select_scatter(h, h[:, 0] ** 2, 1, 1) + torch.slice_scatter(h, h[..., :2] ** 2, 2, 1, 3)
        + torch.diagonal_scatter(h[..., :2], h[:, 0, :2] ** 2, dim1=1, dim2=2).repeat(1, 1, 2)
        + torch.diagflat(h[0, 0])[:2] + F.max_unpool1d(*F.max_pool1d(h, 2, return_indices=True), 2)
        + F.max_unpool2d(*F.max_pool2d(h[None], 2, return_indices=True), 2)[0]
        + F.max_unpool3d(*F.max_pool3d(h[None, None, :2], 2, return_indices=True), 2)[0, 0, :1]
    ),
    "scattered otherwise": lambda h: sum(
        h.scatter_reduce(2, PLACES.expand(len(h), 2, 4), h * h, how) for how in ("sum", "mean", "amax", "amin")
    ),
    "taken": lambda h: torch.masked_select(h[0], MASK).sum() + h.take(INDEX).sum() * h,
    "matrices": lambda h: (
        torch.inverse(square(h)) + linalg.inv(square(h)) + linalg.cholesky(square(h))
        + linalg.matrix_power(square(h), 2)
        + linalg.solve_triangular(B.tril() + 3 * torch.eye(4, dtype=f64), square(h), upper=False)
        + linalg.eigvalsh(square(h) + C.diag())[..., None] + linalg.pinv(square(h))
        + linalg.multi_dot([square(h)[0], B, B])
        + torch.cholesky_solve(square(h), linalg.cholesky(square(h)))
        + linalg.svdvals(square(h) + C.diag())[..., None] + linalg.qr(square(h))[1] + linalg.inv_ex(square(h))[0]
        + linalg.cholesky_ex(square(h))[0] + linalg.vecdot(square(h), B)[..., None]
        + torch.block_diag(h[0], h[1])[:, :4]
    ),
    "statistics": lambda h: h[0].cov()[0, 0] * h + h[:, 0].corrcoef()[0, 1] * h,
    "special": lambda h: (
        torch.i0(h) + special.i0e(h) + special.i1(h) + (h * h + 1).digamma() + torch.polygamma(1, h * h + 1)
        + special.erfcx(h * h) + special.ndtr(h) + special.log_ndtr(h) + special.entr(h * h + 0.5)
    ),
    "stacked": lambda h: (
        torch.vstack([h, h])[: len(h)] + torch.hstack([h, h])[:, :2] + torch.dstack([h, h])[..., :4]
        + torch.column_stack([h, h])[:, :2] + h.renorm(2, 0, 1.0)
    ),
    "similar": lambda h: F.bilinear(h, h.sin(), B.expand(2, 4, 4)) + F.cosine_similarity(h, C, -1)[..., None]
    + F.pairwise_distance(h, C)[..., None],
    "losses": lambda h: (
        F.mse_loss(h, like(h), reduction="none") + F.smooth_l1_loss(h, like(h)) + F.huber_loss(h, like(h))
        + F.l1_loss(h, like(h)) + F.binary_cross_entropy(h.sigmoid(), like(h))
        + F.binary_cross_entropy_with_logits(h, like(h)) + F.kl_div(h.log_softmax(-1), like(h), reduction="none")
        + F.cross_entropy(h[:, 0], torch.tensor([0, 1, 2])) + F.nll_loss(h[:, 0], torch.tensor([0, 1, 2]))
    ),
    "determinants": lambda h: (
        torch.det(square(h)) + linalg.slogdet(square(h))[1] + square(h).logdet() + linalg.det(h @ h.mT)
    )[:, None],
    "solve": lambda h: (
        linalg.solve(square(h), h.mT) + linalg.solve(B + B.new_zeros(len(h), 1, 1), h.mT) + linalg.solve(B, h.mT)
        + linalg.solve(square(h), h[:, 0])[..., None] + linalg.solve(square(h), h, left=False).mT
        + linalg.solve(square(h)[0], h[0, 0])[:, None]
    ),
    "products with vectors": lambda h: h @ C + (h[0, 0] @ h[:, 0].T).sum() + h.matmul(B[0]),
    "norms": lambda h: h.norm(p=1, dim=-1) + linalg.norm(h, dim=-1) + linalg.vector_norm(h, 3, -1),
    "broadcast": lambda h: torch.broadcast_tensors(h[:, :1], C, h)[0] * (+h).positive() + C.expand_as(h),
}  # fmt: skip


def around(case, cases=PROVED):
    def function(x):
        h = (x @ WEIGHT).view(len(x), 2, 4)
        y = cases[case](h)
        return y.reshape(N, -1) if y.dim() and y.shape[0] == N else h.flatten(1) * y.sum()

    return function


@pytest.mark.parametrize("case", PROVED)
def test_what_is_proved(case):
    assert_right(around(case), numbers(N, D), numbers(2, N, D, seed=6), [WEIGHT, B])


def lower(a):
    return a.tril() + a.tril(-1).mT


def upper(a):
    return a.triu() + a.triu(1).mT


# Of a matrix, and what they see of it.
OF_A_TRIANGLE = {
    "cholesky": (linalg.cholesky, lower),
    "cholesky, upper": (lambda a: linalg.cholesky(a, upper=True), upper),
    "cholesky_ex": (lambda a: linalg.cholesky_ex(a)[0], lower),
    "eigvalsh": (linalg.eigvalsh, lower),
    "eigvalsh, upper": (lambda a: linalg.eigvalsh(a, "U"), upper),
    "pinv": (lambda a: linalg.pinv(a, hermitian=True), lower),
    "cholesky_solve": (lambda a: torch.ones_like(a).cholesky_solve(a), torch.tril),
}


@pytest.mark.parametrize("name", OF_A_TRIANGLE)
def test_what_reads_one_triangle(name):
    """Of a matrix that is not symmetric PyTorch's own derivatives are those of another function."""
    function, seen = OF_A_TRIANGLE[name]

    def of(x, seen=lambda a: a):
        a = (x @ torch.cat([WEIGHT, WEIGHT.sin()], 1)[:, :9]).view(-1, 3, 3) / 9 + 2 * torch.eye(3, dtype=f64)
        return function(seen(a)).flatten(1)

    x, v, results = numbers(N, D), numbers(2, N, D, seed=6), []
    for y, t in (propagated(of, x, v), (of(x, seen), differences(lambda x: of(x, seen), x, v))):
        results.append([y, t, *torch.autograd.grad(y.sin().sum() + t.sin().sum(), WEIGHT)])
    for got, expected in zip(*results, strict=True):
        assert (got - expected).abs().max() <= BY_DIFFERENCES["a rule"] * expected.abs().max()


@pytest.mark.parametrize("case", [*CASES, *PROVED])
def test_every_rule_by_gradients(case):
    """What pairs have rules for is right from the other side, too: one output along two directions, by the reference,
    at first and again."""
    function, results = around(case, CASES | PROVED), []
    student = lambda x: (y := function(x).sin()) @ numbers(y.shape[1], 1, seed=7)  # noqa: E731
    x, v, c = numbers(N, D).requires_grad_(), numbers(2, N, D, seed=6), numbers(2, N, 1, seed=9)
    for way in ("reference", "reference", None):
        y, t = sk.jvp(student, x, v, backend=way) if way else (student(x), differences(student, x, v))
        loss = y.sin().sum() + (c * t.sin()).sum()
        results.append([y, t, *torch.autograd.grad(loss, [x, WEIGHT, B, KERNEL], materialize_grads=True)])
    for got in results[:2]:
        for g, e in zip(got, results[2], strict=True):
            assert (g - e).abs().max() <= BY_DIFFERENCES["a rule"] * e.abs().max().clamp(min=1e-2)


RECURRENT = {
    "GRU": (nn.GRU, {}),
    "GRU, two layers": (nn.GRU, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}),
    "LSTM": (nn.LSTM, {"bias": False}),
    "LSTM, both ways": (nn.LSTM, {"bidirectional": True}),
    "LSTM, projected": (nn.LSTM, {"proj_size": 2, "num_layers": 2}),
    "RNN": (nn.RNN, {"batch_first": False}),
    "RNN, relu": (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
}


def recurrent(name, state=False):
    kind, named = RECURRENT[name]
    torch.manual_seed(2)
    net = kind(3, 4, **{"batch_first": True, **named}).eval()

    def function(x, net):
        h = x.view(len(x), 4, 3) if net.batch_first else x.view(len(x), 4, 3).transpose(0, 1)
        out = (1 + net.bidirectional) * net.num_layers
        first = x[:, :4].expand(out, -1, -1) if state else None
        y, last = net(h, first)
        return y.transpose(0, 0 if net.batch_first else 1).flatten(1) + (last[0] if name[0] == "L" else last).sum()

    return Call(function, net).double()


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers(name):
    student = recurrent(name)
    inputs = list(student.parameters())
    assert_right(student, numbers(N, 12), numbers(2, N, 12, seed=6), inputs, BY_DIFFERENCES["a network"])
    if name == "GRU":
        student = recurrent(name, state=True)
        assert_right(student, numbers(N, 12), numbers(2, N, 12, seed=6), [], BY_DIFFERENCES["a network"])


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_dropout_between_recurrent_layers_is_pytorchs(kind):
    """The same numbers are drawn for it."""

    def seeded(x, net):
        torch.manual_seed(5)
        return net(x.view(len(x), 4, 3))[0].flatten(1)

    student = Call(seeded, kind(3, 4, 2, dropout=0.5, batch_first=True)).double()
    x, v = numbers(N, 12), numbers(2, N, 12, seed=6)
    assert_right(student, x, v, [*student.parameters()], BY_DIFFERENCES["a network"])


def test_a_packed_sequence_goes_to_the_reference():
    def packed(x, net):
        steps = rnn.pack_padded_sequence(x.view(len(x), 4, 3), torch.tensor([2, 4, 3]), True, enforce_sorted=False)
        return rnn.pad_packed_sequence(net(steps)[0], batch_first=True)[0].flatten(1)

    student, x, v = Call(packed, nn.GRU(3, 4)).double(), numbers(N, 12), numbers(2, N, 12, seed=6)
    with pytest.raises(sk.NotProvided, match="_pack_padded_sequence in it has no rule"):
        sk.jvp(student, x, v, backend="streams")
    with pytest.warns(sk.SobolevWarning, match="_pack_padded_sequence in it has no rule"):
        tangents = sk.jvp(student, x, v)[1]
    found, expected = (
        [t, *torch.autograd.grad(t.sin().sum(), [*student.parameters()])]
        for t in (tangents, differences(student, x, v))
    )
    for got, e in zip(found, expected, strict=True):
        assert (got - e).abs().max() <= BY_DIFFERENCES["a network"] * e.abs().max()


def test_recurrent_layers_by_the_reference():
    """A free choice takes pairs for them; the reference is right too."""
    student, x, v = recurrent("LSTM"), numbers(N, 12), numbers(2, N, 12, seed=1)
    results = [sk.jvp(student, x, v, backend=backend)[1] for backend in (None, "streams", "reference")]
    torch.testing.assert_close(results[0], results[1], **ANOTHER_WAY)
    torch.testing.assert_close(results[0], results[2], **ANOTHER_WAY)


def test_every_jvp_that_is_trusted_was_proved():
    used, by_rule = {}, {}
    for case in PROVED:
        propagated(around(case), numbers(N, D), numbers(1, N, D), by_rule, used)
    named = {name_of(function).removeprefix("linalg_").removeprefix("special_") for function in TRUSTED}
    named = {name for name in named if not name.endswith("_")}
    seen = {name.removeprefix("linalg_").removeprefix("special_") for name in (*used, *by_rule)}
    assert named - seen == set()


def test_a_deviation_of_0_has_derivatives_0():
    """As the norms have, of features that are all alike: where a unit is dead in all of them, nothing becomes NaN."""
    net, x, v = nn.Linear(D, 4).double(), numbers(N, D).requires_grad_(), numbers(2, N, D, seed=1)
    results = []
    for spread in (lambda h: (0 * h).std(-1, keepdim=True), lambda h: 0 * h[:, :1]):
        y, dy = sk.jvp(lambda x, spread=spread: net(x).sin() + spread(net(x)), x, v, backend="streams")
        gradients = torch.autograd.grad((y + dy).square().sum(), (x, *net.parameters()))
        results.append((y, dy, *gradients))
    torch.testing.assert_close(*results)


def test_explain_tells_what_went_without_a_rule():
    student = Call(lambda x, net: F.mse_loss(net(x).logcumsumexp(1), x[:, :2], reduction="none"), nn.Linear(D, 2))
    text = sk.explain(student.double(), numbers(N, D))
    assert "linear 1" in text and "\nwithout rule" in text and "logcumsumexp 1" in text and "mse_loss 2" in text


def test_explain_names_what_sends_a_student_to_the_reference():
    text = sk.explain(Call(lambda x, net: torch.fft.rfft(net(x)).abs(), nn.Linear(D, 2)).double(), numbers(N, D))
    assert "-> reference" in text and "streams    refused: fft_rfft in it has no rule" in text
