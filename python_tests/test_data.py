"""Targets are data: indices, loaders, devices, dtypes, pytrees; of a teacher, computed once; NumPy's whole numbers."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.utils import _pytree
from torch.utils.data import ConcatDataset, DataLoader, Subset, default_collate

import sobolev_kernels as sk
from sobolev_kernels.testing.rule import ANOTHER_WAY

N, D, O, P = 12, 3, 2, 2  # more samples than a batch of the loaders below, and no multiple of it
torch.manual_seed(0)
X = torch.randn(N, D, dtype=torch.float64)
STUDENT, TEACHER = (sk.MLP(D, O, width=8).double() for _ in range(2))
ORDER = torch.randperm(N)
SEEDED, UP = sk.Directions.sphere(P, seed=3), sk.Cotangents.normal(P, seed=4)


def detached(*tensors):
    return [tensor.detach() for tensor in tensors]


Y, T = detached(*sk.jvp(TEACHER, X, SEEDED))
G = sk.vjp(TEACHER, X, UP)[1].detach()
J = sk.vjp(TEACHER, X, sk.Cotangents.basis())[1].detach().transpose(0, 1)
SECOND = sk.jet(TEACHER, X, SEEDED)[2].detach()
# Targets whose samples have directions or cotangents of their own, and what the call adds.
OWN = {
    "tangents along a seed": (sk.Targets(Y, tangents=T, directions=SEEDED), {}),
    "tangents along given ones": (sk.Targets(Y, tangents=T, directions=SEEDED.tensor(X)), {}),
    "tangents along the call's seed": (sk.Targets(Y, tangents=T), {"directions": SEEDED}),
    "tangents along the call's, moved": (
        sk.Targets(Y, tangents=sk.jvp(TEACHER, X, SEEDED.at(2))[1].detach()), {"directions": SEEDED.at(2)},
    ),
    "vjps of a seed": (sk.Targets(Y, vjps=G, cotangents=UP), {}),
    "vjps of the call's seed": (sk.Targets(Y, vjps=G), {"cotangents": UP}),
    "vjps of given ones": (sk.Targets(Y, vjps=G, cotangents=UP.tensor(Y)), {}),
    "a jacobian along a seed": (sk.Targets(Y, J, directions=SEEDED), {}),
    "a teacher along a seed": (sk.Targets(Y, teacher=TEACHER, directions=SEEDED), {}),
    "vjps alone": (sk.Targets(vjps=G), {"cotangents": UP, "weights": (0, 1)}),
    "classes beside vjps": (
        sk.Targets(torch.arange(N) % O, vjps=G, cotangents=UP), {"head": "log_softmax", "value_loss": "cross_entropy"},
    ),
    "order 2": (sk.Targets(Y, tangents=T, seconds=SECOND, directions=SEEDED), {"order": 2}),
    "shared": (sk.Targets(Y, J, directions=sk.Directions.given(torch.eye(D).double())), {}),
    "basis": (sk.Targets(Y, J, directions=sk.Directions.basis()), {}),
    "exact": (sk.Targets(Y, J), {"derivatives": "exact"}),
}  # fmt: skip


def each(x, targets, settings):
    # a student of his own each time, so that fresh directions are none that a line search goes along
    return sk.sobolev_loss(copy.deepcopy(STUDENT), x, targets, reduction="none", **settings)


def assert_same(a, b):
    torch.testing.assert_close(a, b, **ANOTHER_WAY)  # directions are drawn by the core here and by torch there


@pytest.mark.parametrize("targets, settings", OWN.values(), ids=OWN)
def test_no_sample_meets_the_directions_of_another(targets, settings):
    whole = each(X, targets, settings)
    assert_same(each(X[ORDER], targets[ORDER], settings), whole[ORDER])
    some = ORDER[3:9]
    assert_same(each(X[some], targets[ORDER][3:9], settings), whole[some])
    both, numbers = sk.Targets.cat([targets[some], targets[some[:0]], targets[2]]), torch.tensor([*some, 2])
    assert_same(each(X[numbers], both, settings), whole[numbers])
    data = sk.SobolevDataset(X, targets.along(X, outputs=O) if "head" in settings else targets)
    for x, batch in DataLoader(data, batch_size=5, shuffle=True):
        if not settings or "derivatives" in settings or "order" in settings:
            places = [int((X == row).all(1).nonzero()) for row in x]
            assert_same(each(x, batch, settings), whole[places])


def test_projected_targets_keep_their_directions_at_every_step():
    targets, loss = OWN["tangents along a seed"][0], sk.SobolevLoss()
    assert loss.at(5)(TEACHER, X, targets) < 1e-20
    assert_same(loss.at(5)(STUDENT, X[ORDER], targets[ORDER]), loss(STUDENT, X, targets))
    moving = sk.Targets(Y, J, directions=SEEDED)
    each_of = sk.SobolevLoss(reduction="none").at(4)
    assert_same(each_of(STUDENT, X[ORDER], moving[ORDER]), each_of(STUDENT, X, moving)[ORDER])


INDICES = {
    "a slice": slice(2, 9, 3), "backwards": slice(9, 2, -2), "numbers": torch.tensor([3, 0, -1]),
    "of int32": torch.tensor([3, 0], dtype=torch.int32), "an array": np.array([5, 1]), "a list": [4, 4],
    "a mask": Y[:, 0] > 0, "an array of truth": (Y[:, 0] > 0).numpy(), "a list of truth": (Y[:, 0] > 0).tolist(),
    "none": [], "all": slice(None), "a range": range(2, 5),
}  # fmt: skip


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_an_index_is_numpys(index):
    numbers = np.arange(N)[np.array(index, dtype=int) if isinstance(index, list) and not index else index].copy()
    targets = sk.Targets(Y, J, directions=SEEDED.tensor(X))[index]
    assert len(targets) == len(numbers)
    assert torch.equal(targets.values, Y[numbers]) and torch.equal(targets.jacobian, J[numbers])
    assert torch.equal(targets.directions.values, SEEDED.tensor(X)[:, numbers])


@pytest.mark.parametrize("index", [3, -2, np.int64(3), torch.tensor(3)], ids=repr)
def test_a_number_is_one_sample(index):
    targets = sk.Targets(Y, J)[index]
    assert len(targets) == 1 and torch.equal(targets.values, Y[int(index)][None])


BAD_INDICES = [
    (N, IndexError, "index: expected a sample from -12 to 11, got 12"),
    ([0, N], IndexError, "index: expected samples from -12 to 11, got 12"),
    (torch.tensor([-13]), IndexError, "index: expected samples from -12 to 11, got -13"),
    (torch.ones(3, dtype=torch.bool), IndexError, "index: expected a mask of 12 samples, got a tensor bool [3]"),
    (True, TypeError, "index: expected a whole number"),
    (1.0, TypeError, "index: expected a whole number"),
    ([0.5], TypeError, "index: expected a whole number"),
    ((0, 1), TypeError, "index: expected a whole number"),
    (None, TypeError, "index: expected a whole number"),
    (..., TypeError, "index: expected a whole number"),
    ("values", TypeError, "index: expected a whole number"),
    (slice(0.5), TypeError, "index: expected a slice of whole numbers"),
    (torch.zeros(2, 2, dtype=torch.int64), TypeError, "index: expected a whole number"),
]


@pytest.mark.parametrize("index, kind, message", BAD_INDICES, ids=lambda value: str(value)[:30])
def test_what_is_no_index(index, kind, message):
    with pytest.raises(kind, match=message.replace("[", r"\[")):
        sk.Targets(Y, J)[index]


def test_counts_and_truth():
    assert len(sk.Targets(vjps=G)) == len(sk.Targets(tangents=T)) == N
    taught = sk.Targets(teacher=TEACHER)
    assert taught and sk.Targets(Y[:0], J[:0]) and taught[3:] is taught
    with pytest.raises(TypeError, match="len: expected targets with a tensor"):
        len(taught)
    with pytest.raises(TypeError, match=r"targets.along\(x\)"):
        sk.Targets(teacher=TEACHER, directions=SEEDED)[:2]
    with pytest.raises(ValueError, match="as many samples in all of them"):
        sk.Targets(Y, J[:4])[:2]
    with pytest.raises(ValueError, match="those of 12 samples"):
        sk.SobolevDataset(X, sk.Targets(Y[:4], J[:4]))
    with pytest.raises(ValueError, match="those of 12 samples"):
        each(X, sk.Targets(Y, tangents=T, directions=SEEDED)[:4], {})
    with pytest.raises(ValueError, match="outputs=O"):
        sk.SobolevDataset(X, sk.Targets(vjps=G, cotangents=UP))


BAD_CATS = {
    "expected values, jacobian in all of them, got values": [sk.Targets(Y, J), sk.Targets(Y)],
    "tensors alike": [sk.Targets(Y, J), sk.Targets(Y, J[..., :2])],
    "tensors alike but": [sk.Targets(Y, J), sk.Targets(Y.float(), J)],
    "directions alike": [sk.Targets(Y, J, directions=SEEDED), sk.Targets(Y, J, directions=sk.Directions.sphere(3))],
    "the same one": [sk.Targets(Y, teacher=TEACHER), sk.Targets(Y, teacher=STUDENT)],
    "at least one": [],
    "a list of": [Y],
}


@pytest.mark.parametrize("message, targets", BAD_CATS.items(), ids=BAD_CATS)
def test_what_does_not_go_together(message, targets):
    with pytest.raises((ValueError, TypeError), match=message):
        sk.Targets.cat(targets)


@pytest.mark.parametrize("wrapped", [lambda d: d, lambda d: Subset(d, range(N)), lambda d: ConcatDataset([d])])
def test_loaders(wrapped):
    data = wrapped(sk.SobolevDataset(X, OWN["tangents along a seed"][0]))
    whole, seen = each(X, *OWN["tangents along a seed"]), []
    for x, targets in DataLoader(data, batch_size=5, num_workers=0):
        seen.append(each(x, targets, {}))
    assert_same(torch.cat(seen), whole)
    samples = [data[i] for i in range(N)]  # what a loader of an older kind has
    x, targets = default_collate(samples)
    assert_same(each(x, targets, {}), whole)
    kept = next(iter(DataLoader(data, batch_size=4, collate_fn=list)))  # what a user's own collate is handed
    assert len(kept) == 4 and kept[1].inputs.shape == (D,)


def test_one_sample_of_a_data_set():
    data = sk.SobolevDataset(X, sk.Targets(Y, J))
    for index in (3, np.int64(3), 3 - N):
        x, targets = data[index]
        assert torch.equal(x, X[3]) and torch.equal(targets.jacobian, J[3:4])
    assert len(data[[1, 2]].inputs) == len(data[2:4].targets) == 2
    with pytest.raises(IndexError, match="index: expected a sample from -12 to 11"):
        data[N]


def test_workers_take_it():
    data = sk.SobolevDataset(X, sk.Targets(Y, J))
    got = [(x, t) for x, t in DataLoader(data, batch_size=5, num_workers=1)]
    assert torch.equal(torch.cat([t.jacobian for _, t in got]), J) and torch.equal(torch.cat([x for x, _ in got]), X)


def test_a_batch_is_gathered_at_once(monkeypatch):
    data, asked = sk.SobolevDataset(X, sk.Targets(Y, J)), []
    one = type(data).__getitem__
    monkeypatch.setattr(type(data), "__getitem__", lambda self, index: asked.append(index) or one(self, index))
    list(DataLoader(data, batch_size=5, shuffle=True))
    assert [len(index) for index in asked if not isinstance(index, int)] == [5, 5, 2] and len(asked) == 6


def test_moved_and_cast():
    labels = torch.arange(N) % O
    targets = sk.Targets(labels, tangents=T, directions=SEEDED.tensor(X))[ORDER]
    moved = targets.to("cpu", torch.float32, non_blocking=True)
    assert moved.values.dtype == torch.int64 and moved.tangents.dtype == moved.directions.values.dtype == torch.float32
    assert targets.to(torch.float64) is targets and targets.to(X) is targets and targets.cpu() is targets
    assert targets.to(torch.float64, copy=True).tangents.data_ptr() != targets.tangents.data_ptr()
    assert targets.float().double().tangents.dtype == torch.float64
    assert targets.to("meta").directions.values.is_meta
    assert sk.Directions.given(X[None]).to(torch.float32).values.dtype == torch.float32
    with pytest.raises(ValueError, match="dtype: expected one of"):
        targets.to(torch.int64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["tangents along given ones", "vjps of a seed", "order 2", "exact"])
def test_targets_are_cast_to_the_students_dtype(name, dtype):
    targets, settings = OWN[name]
    student, x = copy.deepcopy(STUDENT).to(dtype), X.to(dtype)
    for _ in range(3):  # the long way, and what is kept of it
        got = sk.sobolev_loss(student, x, targets, **settings)
        got.backward()
        expected = sk.sobolev_loss(student, x, targets.to(dtype), **settings)
        assert got.dtype == dtype and torch.equal(got, expected)


def test_compiled():
    targets, settings = OWN["tangents along the call's seed"]

    def step(x, targets, order):
        return sk.sobolev_loss(STUDENT.float(), x[order], targets[order], **settings)

    expected = step(X.float(), targets, ORDER)
    assert_close = torch.testing.assert_close
    assert_close(torch.compile(step, fullgraph=True, backend="eager")(X.float(), targets, ORDER), expected)
    STUDENT.double()


def test_a_pytree_of_its_tensors():
    targets = OWN["tangents along given ones"][0]
    leaves, spec = _pytree.tree_flatten(targets)
    assert {leaf.data_ptr() for leaf in leaves} == {t.data_ptr() for t in (Y, T, targets.directions.values)}
    assert_same(each(X, _pytree.tree_unflatten(leaves, spec), {}), each(X, targets, {}))
    assert _pytree.tree_map(lambda t: t.float(), targets).tangents.dtype == torch.float32
    zeros = _pytree.tree_map(lambda _: 0, targets)  # as in_dims of vmap are
    assert zeros.values == zeros.directions.values == 0 and spec == _pytree.tree_structure(zeros)
    assert len(_pytree.tree_leaves(sk.Targets(Y, directions=SEEDED, teacher=TEACHER))) == 1
    keys = [_pytree.keystr(path) for path, _ in _pytree.tree_flatten_with_path(targets)[0]]
    assert keys[:2] == [".values", ".tangents"]


def test_lightning_moves_it_and_looks_no_further():
    """What lightning_utilities' apply_to_collection asks: `.to`, else whether it is a dataclass, which must not be
    frozen."""
    targets = sk.Targets(Y, J)
    assert callable(targets.to) and not hasattr(type(targets), "__dataclass_fields__")
    assert not hasattr(type(targets), "__iter__")
    with pytest.raises(AttributeError, match=r"targets.replace\(values=...\)"):
        targets.values = None


def test_in_few_words():
    text = repr(sk.Targets(Y, tangents=T, directions=SEEDED.at(1), teacher=None))
    tensors = "values: float64 [12, 2] on cpu, tangents: float64 [2, 12, 2] on cpu"
    assert text == f"Targets({tensors}, directions: sphere 2 seed 3 at 1)"
    assert len(repr(sk.Targets(teacher=TEACHER, directions=SEEDED.tensor(X)))) < 100
    for twin in (copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))):
        assert_same(each(X, twin(OWN["order 2"][0]), {"order": 2}), each(X, *OWN["order 2"]))


ARRAYS = {
    "float64": (Y.numpy(), torch.float64), "a list": (Y.tolist(), torch.float64),
    "float16": (Y.half().numpy(), torch.float16),
    "backwards": (Y.numpy()[::-1], torch.float64), "of the other end": (Y.numpy().astype(">f4"), torch.float32),
    "long": (Y.numpy().astype(np.longdouble), torch.float64), "classes": (np.arange(N, dtype=np.uint8), torch.int64),
    "a column": (Y.numpy()[:, 0], torch.float64),
}  # fmt: skip


@pytest.mark.parametrize("array, dtype", ARRAYS.values(), ids=ARRAYS)
def test_of_arrays(array, dtype):
    targets = sk.Targets.from_numpy(array, jacobian=np.ones((N, O, D), dtype=int))
    assert targets.values.dtype == dtype and targets.jacobian.dtype == torch.float64
    np.testing.assert_array_equal(targets.values.numpy(), np.asarray(array).astype(targets.values.numpy().dtype))


def test_arrays_are_cast_and_refused_in_words():
    vectors = SEEDED.tensor(X).numpy()
    targets = sk.Targets.from_numpy(Y.numpy(), tangents=T.numpy(), directions=vectors, dtype=torch.float32)
    assert targets.directions.values.dtype == torch.float32 and targets.values.dtype == torch.float32
    frozen = Y.numpy().copy()
    frozen.flags.writeable = False
    assert torch.equal(sk.Targets.from_numpy(frozen).values, Y)
    with pytest.raises(TypeError, match="values: expected an array of numbers"):
        sk.Targets.from_numpy(np.array(["a"]))
    with pytest.raises(TypeError, match="did you mean 'jacobian'"):
        sk.Targets.from_numpy(jacobien=Y.numpy())


def function(x):
    return torch.stack([(x**3).sum(1), torch.sin(x).prod(1)], 1)


MODES = {
    "directions": {"directions": sk.Directions.sphere(P)},
    "seeded, shared": {"directions": sk.Directions.normal(P, shared=True, seed=2)},
    "given": {"directions": sk.Directions.given(SEEDED.tensor(X))},
    "basis": {"directions": sk.Directions.basis(unbiased=True)},
    "cotangents": {"cotangents": sk.Cotangents.sphere(P, centred=True)},
    "seeded cotangents": {"cotangents": UP.at(3)},
    "exact": {"derivatives": "exact"},
    "order 2": {"directions": sk.Directions.orthonormal(P), "order": 2},
    "columns": {"directions": sk.Directions.sphere(P), "wrt": [2, 0]},
    "head": {"directions": sk.Directions.sphere(P), "head": ("softmax", 2.0)},
    "likelihood": {"cotangents": sk.Cotangents.sphere(P), "head": "log_softmax", "value_loss": "cross_entropy"},
    "callable head": {"derivatives": "exact", "head": torch.square},
}


@pytest.mark.parametrize("batch_size", [None, np.int64(5)], ids=str)
@pytest.mark.parametrize("teacher", [TEACHER, function], ids=["MLP", "function"])
@pytest.mark.parametrize("settings", MODES.values(), ids=MODES)
def test_a_teacher_is_asked_once(settings, teacher, batch_size):
    state = torch.get_rng_state()
    targets = sk.Targets.from_teacher(teacher, X, **settings, batch_size=batch_size)
    drawn, asked = torch.get_rng_state(), dict(settings)
    assert targets.teacher is None
    if targets.directions is None and targets.cotangents is None:
        kept = settings
    else:
        kept = {name: value for name, value in settings.items() if name not in ("directions", "cotangents")}
    torch.set_rng_state(state)
    expected = each(X, sk.Targets(teacher=teacher), asked)  # what is drawn is what a call would draw
    assert torch.equal(torch.get_rng_state(), drawn)
    assert_same(each(X, targets, kept), expected)
    assert_same(each(X[ORDER], targets[ORDER], kept), expected[ORDER])


@pytest.mark.parametrize("wrt", [None, [2, 0]], ids=str)
def test_a_teachers_hessian(wrt):
    targets = sk.Targets.from_teacher(function, X, order=2, wrt=wrt)
    columns = [0, 1, 2] if wrt is None else wrt
    hessian = torch.func.vmap(torch.func.hessian(lambda x: function(x[None])[0]))(X)[:, :, columns][..., columns]
    torch.testing.assert_close(targets.hessian, hessian, **ANOTHER_WAY)
    settings = {"order": 2, "wrt": wrt, "directions": sk.Directions.sphere(P, seed=5)}
    assert_same(each(X, targets, settings), each(X, sk.Targets(teacher=function), settings))


def test_a_teacher_of_inputs_of_any_shape():
    x = X.reshape(N, 1, D)
    teacher, student = (torch.nn.Sequential(torch.nn.Flatten(), m) for m in (TEACHER, STUDENT))
    for settings in ({}, {"directions": SEEDED}, {"order": 2}):
        targets = sk.Targets.from_teacher(teacher, x, **settings)
        call = {"directions": sk.Directions.sphere(P, seed=3)} | settings
        kept = call if targets.directions is None else {}
        got = sk.sobolev_loss(student, x[ORDER], targets[ORDER], **kept)
        if targets.directions is not None:
            assert_same(got, sk.sobolev_loss(student, x, sk.Targets(teacher=teacher), **call))


WHOLE = {
    "P": lambda i: sk.Directions.sphere(i(P), seed=1).tensor(X),
    "seed": lambda i: sk.Directions.sphere(P, seed=i(7)).tensor(X),
    "offset": lambda i: SEEDED.at(i(5)).tensor(X),
    "first": lambda i: SEEDED.numbered_from(i(4)).tensor(X),
    "order": lambda i: each(X, OWN["order 2"][0], {"order": i(2)}),
    "wrt": lambda i: each(X, sk.Targets(Y, J[..., [2, 0]]), {"wrt": [i(2), i(0)], "directions": SEEDED}),
    "wrt, an array": lambda i: torch.stack(
        [
            each(X, sk.Targets(Y, J[..., [2, 0]]), {"wrt": np.array([2, 0], dtype=i), "directions": SEEDED}),
            sk.jvp(STUDENT, X, sk.Directions.sphere(1, seed=2), wrt=np.array([2, 0], dtype=i))[0][:, 0],
        ]
    ),
    "SobolevLoss": lambda i: sk.SobolevLoss(order=i(2), reduction="none")(STUDENT, X, OWN["order 2"][0]),
    "jet": lambda i: torch.cat(sk.jet(STUDENT, X, SEEDED, order=i(2))[1:]),
    "laplacian": lambda i: sk.laplacian(STUDENT, X, wrt=(i(1),))[1],
    "step": lambda i: sk.SobolevLoss(directions=SEEDED).at(i(2))(STUDENT, X, sk.Targets(Y, J)),
    "MLP": lambda i: torch.tensor([p.numel() for p in sk.MLP(i(2), i(1), width=i(3), depth=i(1)).parameters()]),
}


@pytest.mark.parametrize("number", [np.int64, np.uint8, np.int32], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("call", WHOLE.values(), ids=WHOLE)
def test_whole_numbers_of_numpys(call, number):
    assert torch.equal(call(number), call(int))


@pytest.mark.parametrize(
    "value", [True, np.bool_(True), 2.0, np.float64(2), "2", np.array([2]), torch.tensor([2])], ids=repr
)
def test_what_is_no_whole_number(value):
    with pytest.raises(ValueError, match="P: expected a whole number"):
        sk.Directions.sphere(value)
    with pytest.raises(ValueError, match="order: expected a whole number from 1"):
        sk.SobolevLoss(order=value)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_terms_log_without_a_filter(order, reduction):
    targets = OWN["order 2"][0]
    terms = sk.sobolev_loss(STUDENT, X, targets, order=order, return_terms=True, reduction=reduction)
    names = ["loss", "value", "derivative", "second"][: 2 + order]
    assert list(terms._asdict()) == names and all(isinstance(t, torch.Tensor) for t in terms._asdict().values())
    assert terms.log() == pytest.approx({name: getattr(terms, name).mean().item() for name in names})
    assert len(terms) == 4 and (terms.second is None) == (order == 1)


def test_states_with_and_without_a_scale():
    scaled, plain = sk.SobolevLoss(input_scale=torch.full((D,), 2.0)), sk.SobolevLoss(output_weight=torch.ones(O))
    model = torch.nn.ModuleDict({"loss": plain})
    model.load_state_dict({f"loss.{name}": value for name, value in scaled.state_dict().items()})
    assert torch.equal(plain.input_scale, scaled.input_scale) and torch.equal(plain.output_weight, torch.ones(O))
    scaled.load_state_dict(sk.SobolevLoss().state_dict())
    assert torch.equal(scaled.input_scale, torch.full((D,), 2.0))
