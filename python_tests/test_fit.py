"""`fit`: what a loop by hand computes, resumed bit for bit, stopped in words; its optimizers, rules and history."""

import csv
import warnings

import numpy
import pytest
import torch

import sobolev_kernels as sk
from sobolev_kernels import call
from sobolev_kernels.testing.rule import CLOSE_IN_SINGLE, ROUNDED_WITHIN
from sobolev_kernels.training import arguments, captured
from sobolev_kernels.training.batches import Batches, Data
from sobolev_kernels.training.checkpoint import load

N, D = 70, 3
torch.manual_seed(0)
X = torch.randn(N, D)
TARGETS = sk.Targets(values=X.square().sum(1, keepdim=True), jacobian=(2 * X)[:, None, :])
EXACT = sk.SobolevLoss(derivatives="exact")


def student(seed=0, kind="MLP"):
    torch.manual_seed(seed)
    if kind == "MLP":
        return sk.MLP(D, 1, width=8, activation="softplus")
    layers = torch.nn.Linear(D, 8), torch.nn.LayerNorm(8), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(8, 1)
    return torch.nn.Sequential(*layers)


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def trained(model, **options):
    defaults = {"loss": EXACT, "epochs": 3, "batch_size": 32, "progress": False, "generator": seeded()}
    return sk.fit(model, X, options.pop("targets", TARGETS), **{**defaults, **options})


def parameters(model):
    return [p.detach().clone() for p in model.parameters()]


def equal(a, b):
    return all(map(torch.equal, parameters(a), parameters(b)))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.Adam(p, 1e-2, fused=True),
        lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
        lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
        lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9),
    ],
    ids=["Adam", "AdamW", "amsgrad", "SGD"],
)
@pytest.mark.parametrize("kind", ["MLP", "any", "along"])
def test_it_is_the_loop_by_hand(optimizer, kind):
    """The same numbers, bit for bit, as a loop over the same batches."""
    loss_fn = sk.SobolevLoss(directions=sk.Directions.sphere(2)) if kind == "along" else EXACT
    kind = "MLP" if kind == "along" else kind
    model, other = student(kind=kind).eval(), student(kind=kind).eval()
    history = trained(model, loss=loss_fn, optimizer=optimizer, epochs=4, schedule="cosine")
    generator, by_hand = seeded(), optimizer(list(other.parameters()))
    torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
    losses, steps, rate = [], 0, by_hand.param_groups[0]["lr"]
    for _ in range(4):
        total = 0.0
        for index in torch.randperm(N, generator=generator).split(32):
            by_hand.param_groups[0]["lr"] = rate * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * steps / 12)).item())
            by_hand.zero_grad()
            loss = loss_fn(other, X[index], TARGETS[index])
            loss.backward()
            by_hand.step()
            total, steps = total + loss.item() * len(index), steps + 1
        losses.append(total / N)
    for ours, theirs in zip(parameters(model), parameters(other), strict=True):
        torch.testing.assert_close(ours, theirs, **ROUNDED_WITHIN)
    torch.testing.assert_close(history["loss"], losses, **ROUNDED_WITHIN)
    assert history.steps == steps == 12


def test_one_prepared_call_serves_every_batch(monkeypatch):
    prepared = []
    monkeypatch.setattr(call, "prepare", lambda *a, _real=call.prepare: prepared.append(1) or _real(*a))
    trained(student(), epochs=5, batch_size=16)
    assert len(prepared) <= 2  # a whole batch and the last one of six


def test_each_sample_once_with_its_own_directions():
    """All that belongs to a sample goes with it, whatever dimension it has samples along."""
    marks = torch.arange(N, dtype=torch.float32)
    v = marks[None, :, None].expand(2, N, D).clone()
    targets = sk.Targets(values=marks[:, None], tangents=marks[None, :, None].expand(2, N, 1), directions=v)
    data = Data(marks[:, None].expand(N, D), targets, marks)
    batches = Batches(data, 16)
    for _ in range(2):
        seen = []
        for batch in batches.epoch(None):
            own = batch.x[:, 0]
            seen += own.tolist()
            for tensor in (batch.targets.values[:, 0], batch.targets.tangents[1, :, 0], batch.sample_weight):
                assert torch.equal(tensor, own)
            assert torch.equal(batch.targets.directions.values[0, :, 2], own)
        assert sorted(seen) == marks.tolist() and seen != marks.tolist()


RUNS = {
    "Adam": {"optimizer": torch.optim.Adam, "lr": 1e-2, "schedule": "one-cycle", "validation": 0.2},
    "directions": {"loss": sk.SobolevLoss(directions=sk.Directions.sphere(2)), "validation": 0.2, "kind": "any"},
    "L-BFGS": {
        "loss": sk.SobolevLoss(directions=sk.Directions.sphere(2)), "optimizer": torch.optim.LBFGS, "lr": 0.5,
        "batch_size": None,
    },
    "plateau": {
        "schedule": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0), "weights": sk.GradNorm,
    },
    "uncertainty": {"weights": sk.Uncertainty, "schedule": lambda o: torch.optim.lr_scheduler.StepLR(o, 2)},
    "scaled": {"scale": True, "validation": 0.2, "generator": None},
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_what_is_resumed_equals_what_was_never_stopped(name, tmp_path):
    def run(model, **more):
        options = dict(RUNS[name])
        options.pop("kind", None)
        if isinstance(options.get("weights"), type):
            options["weights"] = options["weights"]()
        torch.manual_seed(9)
        return trained(model, epochs=5, **options, **more)

    kind = RUNS[name].get("kind", "MLP")
    whole, stopped, resumed = student(kind=kind), student(kind=kind), student(1, kind)
    expected = run(whole)

    def stop(row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    path = tmp_path / "deep" / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        run(stopped, checkpoint=path, progress=stop)
    history = run(resumed, checkpoint=path)
    assert equal(whole, resumed)
    assert history["loss"] == expected["loss"] and history["epoch"] == [1, 2, 3, 4, 5]
    assert history.best_epoch == expected.best_epoch and history.steps == expected.steps
    assert [p.name for p in path.parent.iterdir()] == ["run.pt"]
    again = run(student(2, kind), checkpoint=path)
    assert equal(again.student.student if name == "scaled" else again.student, whole)


def test_checkpoints_of_something_else_are_refused(tmp_path):
    path = tmp_path / "run.pt"
    trained(student(), checkpoint=path)
    with pytest.raises(ValueError, match="batch_size: expected 32, as in the checkpoint, got 16"):
        trained(student(), checkpoint=path, batch_size=16)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="checkpoint: expected a file of fit's"):
        trained(student(), checkpoint=path)
    assert load(tmp_path / "none.pt") is None


def test_the_best_epoch_is_restored():
    model = student()
    seen = []
    history = trained(
        model, epochs=6, optimizer=torch.optim.SGD, lr=0.02, validation=(X[:20], TARGETS[:20]),
        progress=lambda row: seen.append((row["value_error"], parameters(model))),
    )  # fmt: skip
    score = [(a**2 + b**2) ** 0.5 for a, b in zip(history["value_error"], history["derivative_error"], strict=True)]
    best = score.index(min(score))
    assert history.best_epoch == best + 1 and history.best["value_error"] == seen[best][0]
    assert all(map(torch.equal, parameters(model), seen[best][1]))
    y = model(X[:20])
    error = (y - TARGETS.values[:20]).square().mean().sqrt() / TARGETS.values[:20].std(correction=0)
    torch.testing.assert_close(history.best["value_error"], error.item(), **CLOSE_IN_SINGLE)
    (dy,) = torch.autograd.grad(model(x := X[:20].clone().requires_grad_()).sum(), x)
    error = (dy - 2 * X[:20]).norm() / (2 * X[:20]).norm()
    torch.testing.assert_close(history.best["derivative_error"], error.item(), **CLOSE_IN_SINGLE)


def test_a_student_of_units():
    x = X * torch.tensor([1.0, 100.0, 1e-3]) + 5
    values, jacobian = 1e3 * x[:, :1] / 1 + 10 * x[:, 1:2], torch.tensor([1e3, 10.0, 0.0]).expand(N, 1, D)
    history = sk.fit(
        student(), x, sk.Targets(values=values, jacobian=jacobian), loss=EXACT, epochs=60, lr=1e-2, scale=True,
        progress=False, generator=seeded(), batch_size=16, validation=0.2,
    )  # fmt: skip
    assert isinstance(history.student, sk.Scaled) and history.best["value_error"] < 0.1
    assert (history.student(x) - values).norm() < 0.1 * values.norm()
    again = sk.fit(
        history.student.student, x, sk.Targets(values=values, jacobian=jacobian), loss=EXACT, epochs=1,
        scale=history.student.scaler, progress=False,
    )  # fmt: skip
    assert again.student.scaler is history.student.scaler


def test_teachers_and_seeds_and_samples(monkeypatch):
    """A teacher, bare or in targets, is that of the Jacobian computed once; seeded directions stay with samples."""
    teacher = lambda x: x.square().sum(1, keepdim=True)  # noqa: E731
    runs = [trained(student(), targets=t)["loss"] for t in (TARGETS, teacher, sk.Targets(teacher=teacher))]
    assert runs[0] == pytest.approx(runs[1], rel=ROUNDED_WITHIN["rtol"]) and runs[1] == runs[2]
    monkeypatch.setattr(arguments, "MOST", 0)  # so that he is asked at each step
    along = sk.SobolevLoss(directions=sk.Directions.basis())
    live = trained(student(), targets=teacher, loss=along, validation=0.2)
    monkeypatch.undo()
    once = trained(student(), targets=teacher, loss=along, validation=0.2)
    for column in ("loss", "value_error", "derivative_error"):
        assert live[column] == pytest.approx(once[column], rel=CLOSE_IN_SINGLE["rtol"])
    directions = sk.Directions.sphere(2, seed=5)
    _, tangents = sk.jvp(teacher, X, directions)
    loss = sk.SobolevLoss(weights=(0, 1))
    of_itself = sk.Targets(tangents=tangents, directions=directions)
    perfect = Taught(teacher)
    history = trained(perfect, targets=of_itself, loss=loss, epochs=1, lr=1e-9)
    assert history["loss"][0] < 1e-8


class Taught(torch.nn.Module):
    def __init__(self, teacher):
        super().__init__()
        self.teacher, self.factor = teacher, torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.factor * self.teacher(x)


def test_differential_ml_has_the_units_of_all_samples():
    rms = (2 * X).square().mean(0).sqrt()
    by_hand = sk.SobolevLoss(derivatives="exact", weights=(1 / 4, 3 / 4), input_scale=1 / rms)
    a, b, c = student(), student(), student()
    trained(a, loss=by_hand)
    trained(b, weights="differential-ml")
    trained(c, loss=sk.SobolevLoss(derivatives="exact", weights="differential-ml"))
    assert equal(a, b) and equal(b, c)


def test_rules():
    """One that is called each epoch, with terms that can be differentiated, and GradNorm's balance."""
    asked = []

    def rule_of(terms):
        asked.append(torch.autograd.grad(terms.derivative, list(model.parameters()), retain_graph=True))
        return 1.0, 2.0 + len(asked)

    model = student()
    history = trained(model, weights=rule_of)
    assert history["weight_derivative"] == [3.0, 4.0, 5.0] and len(asked) == 3
    terms = sk.SobolevLoss(derivatives="exact", return_terms=True)(model, X, TARGETS)
    weights = sk.GradNorm(momentum=0.0)(terms)
    norms = []
    for term in terms[1:3]:
        found = torch.autograd.grad(term, list(model.parameters()), retain_graph=True, allow_unused=True)
        norms.append(torch.cat([g.flatten() for g in found if g is not None]).norm())
    torch.testing.assert_close(weights[0] * norms[0], weights[1] * norms[1])
    assert sum(weights) == pytest.approx(2)
    learned = sk.Uncertainty()
    trained(student(), weights=learned, lr=1e-2)
    assert (learned.log_variances != 0).all()
    with pytest.raises(ValueError, match="weights: expected 2 finite numbers"):
        trained(student(), weights=lambda terms: (1.0,))


def test_a_loss_that_is_no_number_stops_in_words():
    model = student()
    with pytest.raises(FloatingPointError, match=r"epoch \d+, step \d+: .*(term|parameters).*learning rate"):
        trained(model, optimizer=torch.optim.SGD, lr=1e9, epochs=20)
    assert all(p.isfinite().all() for p in model.parameters())
    values = TARGETS.values.clone()
    values[5] = torch.nan
    with pytest.raises(FloatingPointError, match="the data are not finite: values"):
        trained(student(), targets=TARGETS.replace(values=values))
    weight = torch.ones(N)
    weight[5] = 0
    assert trained(student(), targets=TARGETS.replace(values=values), sample_weight=weight)["loss"][-1] > 0


def test_hooks_of_the_optimizer_are_called():
    model, called = student(), []
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    optimizer.register_step_pre_hook(lambda *_: called.append(model[0].weight.grad is not None))
    trained(model, optimizer=optimizer)
    assert called == [True] * 9


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_of_parameters_are_called(register):
    """At every step: one that changes a gradient changes the training."""
    model, calls = student(), []

    def hook(tensor):
        calls.append(tensor)
        if register == "register_hook":
            return tensor * 0
        tensor.grad.zero_()

    before = model[0].weight.detach().clone()
    getattr(model[0].weight, register)(hook)
    trained(model)
    assert len(calls) == 9 and torch.equal(model[0].weight, before)


def test_any_loss_takes_part():
    """Order 2 with a Hessian, cotangents, classes, images: each validates too."""
    hessian = (2 * torch.eye(D)).expand(N, 1, D, D)
    second = trained(
        student(), targets=TARGETS.replace(hessian=hessian), loss=sk.SobolevLoss(order=2), validation=0.2, epochs=1
    )
    assert 0 < second["second_error"][0] < 10
    cotangents = trained(student(), loss=sk.SobolevLoss(cotangents=sk.Cotangents.sphere(1)), validation=0.2, epochs=1)
    assert 0 < cotangents["derivative_error"][0] < 10
    classes = sk.Targets(values=torch.arange(N) % 2)
    loss = sk.SobolevLoss(value_loss="cross_entropy", head="log_softmax", weights=(1, 0))
    labelled = trained(sk.MLP(D, 2, width=8), targets=classes, loss=loss, validation=0.2, epochs=2)
    assert labelled.best_epoch and "value_error" not in labelled.columns
    images = X[:, None, :].clone()
    flat = torch.nn.Sequential(torch.nn.Flatten(), student())
    history = sk.fit(
        flat, images, sk.Targets(values=TARGETS.values, jacobian=TARGETS.jacobian[:, :, None, :]), loss=EXACT,
        epochs=1, validation=0.2, progress=False, scale=True,
    )  # fmt: skip
    assert history["derivative_error"][0] > 0


def test_fresh_directions_do_not_lead_lbfgs_astray():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = trained(
            student(), loss=sk.SobolevLoss(directions=sk.Directions.sphere(3)), batch_size=None, epochs=6,
            optimizer=lambda p: torch.optim.LBFGS(p, line_search_fn="strong_wolfe"),
        )  # fmt: skip
    assert history["loss"][-1] < 0.1 * history["loss"][0]


def test_a_learning_rate_near_0_is_no_line_search():
    """One batch, the same parameters again and again: warnings are errors here."""
    x, loss = torch.rand(20, 2), sk.SobolevLoss(directions=sk.Directions.sphere(1))
    targets = sk.Targets(values=torch.rand(20, 1), jacobian=torch.rand(20, 1, 2))
    student = sk.MLP(2, 1, width=8)
    sk.fit(student, x, targets, loss=loss, epochs=20, batch_size=None, lr=1e-12, progress=False)
    with pytest.warns(sk.SobolevWarning, match="evaluated again"):  # a loop of one's own is told as before
        for _ in range(8):
            loss(student, x, targets).backward()


def test_history_is_a_table(tmp_path):
    history = trained(student(), validation=0.2, epochs=9)
    text = str(history)
    assert text.splitlines()[0].split()[:2] == ["epoch", "loss"] and f"*{history.best_epoch}" in text
    assert "9 epochs" in repr(history) and len(history) == 9 and len(history["loss"]) == 9
    assert history[-1]["epoch"] == 9 and [row["epoch"] for row in history] == list(range(1, 10))
    history.to_csv(tmp_path / "history.csv")
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == history["loss"]
    with pytest.raises(KeyError, match="did you mean 'loss'"):
        history["los"]
    pytest.importorskip("matplotlib")
    figure = history.plot(tmp_path / "history.png")
    assert len(figure.axes) == 2 and (tmp_path / "history.png").stat().st_size > 1000


class Graph:
    """As a CUDA graph would be: it runs again what was run amid its capture."""

    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1
        self.steps()


def test_captured_steps_by_a_graph_that_is_none(monkeypatch):
    """The order of warming up, capturing and replaying; on the CPU, where a capture runs nothing."""
    model, other = student(), student()
    optimizer = torch.optim.Adam(model.parameters())
    stepper = captured.Captured(model, optimizer, None)
    graphs = []

    def capture(self, batch):
        graph, loss = Graph(), torch.zeros(())

        def steps():
            loss.copy_(captured.Stepper.gradients(self, batch))
            self.optimizer.step()

        graph.steps = steps
        graphs.append(graph)
        self.graphs[id(batch)] = graph, loss

    monkeypatch.setattr(captured.Captured, "_capture", capture)
    stepper.begin(EXACT)
    by_hand = torch.optim.Adam(other.parameters())
    batches = Data(X[:32], TARGETS[:32]), Data(X[32:40], TARGETS[32:40])
    for step in range(12):
        batch = batches[step % 2]
        ours = stepper.gradients(batch).clone()
        stepper.update()
        by_hand.zero_grad()
        loss = EXACT(other, *batch)
        loss.backward()
        by_hand.step()
        torch.testing.assert_close(ours, loss.detach(), **ROUNDED_WITHIN)
    assert len(graphs) == 2 and [g.replays for g in graphs] == [3, 3]
    assert captured.why_not(optimizer, None, X) == "not on CUDA"


REFUSED = {
    "student: expected a torch.nn.Module": lambda: sk.fit(lambda x: x, X, TARGETS, epochs=1),
    "student: expected a module with parameters": lambda: sk.fit(torch.nn.Identity(), X, TARGETS, epochs=1),
    "x: expected a tensor": lambda: sk.fit(student(), X.numpy(), TARGETS, epochs=1),
    "x: expected floating": lambda: sk.fit(student(), X[0], TARGETS, epochs=1),
    "targets: expected Targets, or a teacher": lambda: sk.fit(student(), X, X, epochs=1),
    "targets: expected targets of 70": lambda: sk.fit(student(), X, TARGETS[:9], epochs=1),
    "loss: expected a sobolev": lambda: trained(student(), loss=torch.nn.MSELoss()),
    "loss: expected one with reduction": lambda: trained(student(), loss=sk.SobolevLoss(reduction="none")),
    "loss: expected directions or cotangents that all": lambda: trained(
        student(), loss=sk.SobolevLoss(directions=sk.Directions.given(torch.ones(1, N, D)))
    ),
    "epochs: expected a whole": lambda: trained(student(), epochs=0),
    "batch_size: expected a whole": lambda: trained(student(), batch_size=2.5),
    "optimizer: expected one of the student's": lambda: trained(
        student(), optimizer=torch.optim.SGD(student().parameters(), 0.1)
    ),
    "optimizer: expected a class": lambda: trained(student(), optimizer="adam"),
    "schedule: expected one of cosine.*did you mean": lambda: trained(student(), schedule="cosin"),
    "weights: expected two numbers": lambda: trained(student(), weights=(1.0,)),
    "weights: expected numbers or": lambda: trained(student(), weights="differentialml"),
    "validation: expected a part": lambda: trained(student(), validation=2.0),
    "validation: expected finite": lambda: trained(student(), validation=(X[:9] / 0, TARGETS[:9])),
    "progress: expected True": lambda: trained(student(), progress="yes"),
    "generator: expected a torch.Generator": lambda: trained(student(), generator=0),
    "scale: expected no input_scale": lambda: trained(
        student(), loss=sk.SobolevLoss(input_scale=torch.ones(D)), scale=True
    ),
    "scale: expected no weights 'differential-ml'": lambda: trained(student(), weights="differential-ml", scale=True),
    "values: expected numbers with a unit": lambda: trained(
        student(), targets=sk.Targets(values=torch.zeros(N, dtype=torch.int64)), scale=True
    ),
    "scale: expected a student that is not scaled": lambda: trained(
        sk.Scaled(student(), sk.Scaler().fit(X, TARGETS)), scale=True
    ),
    "fit: takes no argument 'epoch'": lambda: sk.fit(student(), X, TARGETS, epoch=1),
    "sample_weight: expected": lambda: trained(student(), sample_weight=torch.ones(3)),
    "lr: expected none": lambda: trained(
        model := student(), optimizer=torch.optim.SGD(model.parameters(), 0.1), lr=0.1
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_refusals_come_before_anything_is_drawn(words):
    state = torch.get_rng_state()
    with pytest.raises((ValueError, TypeError), match=words), torch.random.fork_rng():
        REFUSED[words]()
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_and_generators_are_as_before():
    """A batch norm in eval() stays so, and is trained."""
    norm = torch.nn.Sequential(torch.nn.Linear(D, 4), torch.nn.BatchNorm1d(4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    assert trained(norm.eval(), validation=0.2, epochs=numpy.int64(2)).best_epoch and not norm.training
    model = student(kind="any")
    model[3].eval()
    state = torch.get_rng_state()
    trained(model, loss=sk.SobolevLoss(directions=sk.Directions.sphere(1)))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and not model[3].training
    with torch.no_grad():
        assert trained(student(), epochs=1).steps == 3
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ["MLP", "any"])
def test_fresh_directions_of_one_batch_are_meant(kind):
    """A schedule that ends near 0 leaves the parameters as they are; of a call by hand that is still warned."""
    model = student(kind=kind)
    loss = sk.SobolevLoss(directions=sk.Directions.sphere(1))
    trained(model, loss=loss, batch_size=None, epochs=5, lr=1e-20)
    with pytest.warns(sk.SobolevWarning, match="evaluated again"):
        for _ in range(5):
            loss(model, X, TARGETS)
