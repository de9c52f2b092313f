"""Energies and forces of a cluster: its labels, the walkers, and losses as they are by hand."""

import pytest
import torch

from examples.forces import experiment as forces
from examples.forces.clusters import K, Units, energy, octahedron, walk
from examples.forces.methods import METHODS, Learner, first_net, hand_written
from sobolev_kernels.testing.rule import CLOSE_IN_SINGLE


def places(walkers: int = 4):
    return walk(walkers, 2, torch.Generator().manual_seed(0)).flatten(0, 1)


def test_least_energy_of_six_atoms():
    """-12.712 (Wales and Doye, 1997), and what is nearly a place without forces."""
    q = octahedron().requires_grad_()
    assert energy(q).item() == pytest.approx(-12.712, abs=5e-3)
    # A tenth of what it is where walkers go.
    assert torch.autograd.grad(energy(q), q)[0].norm() < 1.3
    two = torch.tensor([0.0, 0, 0, 2 ** (1 / 6), 0, 0] + [100.0 * k for k in range(1, 13)], dtype=torch.float64)
    assert energy(two).item() == pytest.approx(-1, abs=1e-6)


def test_labels_against_differences():
    """Of energies in units: gradients, Hessians, descriptors' slopes."""
    q = places()
    units = Units(q)
    labels = units.places(q)
    assert labels.energy.mean().abs() < 1e-5 and labels.x.std(0).sub(1).abs().max() < 1e-5
    step, v = 1e-5, torch.nn.functional.normalize(torch.randn(len(q), K, dtype=torch.float64), dim=1)
    near, far = units.places(q + step * v), units.places(q - step * v)
    along = (units.energies(q + step * v) - units.energies(q - step * v)) / (2 * step)
    bent = (units.energies(q + 1e-4 * v) + units.energies(q - 1e-4 * v) - 2 * units.energies(q)) / 1e-8
    moved = (units.descriptors(q + step * v) - units.descriptors(q - step * v)) / (2 * step)
    v = v.float()
    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close((labels.gradient[:, 0] * v).sum(1), along.float(), **close)
    torch.testing.assert_close(torch.einsum("nij,ni,nj->n", labels.hessian[:, 0], v, v), bent.float(), **close)
    torch.testing.assert_close(torch.einsum("ndk,nk->nd", labels.slopes, v), moved.float(), **close)
    assert near.q.shape == far.q.shape == (8, K)


def test_walkers_move_and_those_of_the_test_are_others(monkeypatch):
    """No place is another's: a walker that rests would give the same again."""
    monkeypatch.setattr(forces, "WALKERS", 12)
    monkeypatch.setattr(forces, "TEST_WALKERS", 4)
    of = forces.data_of.__wrapped__
    learnt, test, _ = of(30, 0)
    assert len(learnt) == 30 and torch.pdist(torch.cat([learnt.q, test.q])).min() > 0.1
    few, same, _ = of(10, 0)
    assert torch.equal(few.q, learnt.q[:10]) and torch.equal(same.q, test.q)
    assert not torch.equal(of(10, 1)[1].q, test.q)


@pytest.mark.parametrize("method", METHODS)
def test_losses_are_those_by_hand(method):
    units = Units(places())
    learnt = units.places(places())
    learner, batch = Learner(method, first_net(0), learnt, units), torch.arange(4)
    found = learner.loss_of(batch)
    if method.startswith("half"):
        # Forces of every second place: NaN, and yet those that are known are what is learnt from.
        full = Learner("both", learner.net, learnt, units)
        known = batch[::2] if method == "half" else 2 * batch
        value, derivative = full.settings["weights"]
        values = Learner("energy", learner.net, learnt, units).loss_of(batch if method == "half" else known)
        expected = value * values + derivative * forces_alone(full, known)
    elif method == "energy":
        expected = (learner.net(learnt.x[batch]) - learnt.energy[batch]).square().mean()
    elif learner.inside:
        # Along random vectors, so in the mean over many.
        many = batch.repeat(600)
        found, expected = learner.loss_of(many), hand_written(learner, many)
        torch.testing.assert_close(found, expected, rtol=0.1, atol=0)
        return
    else:
        expected = hand_written(learner, batch)
    torch.testing.assert_close(found, expected, **CLOSE_IN_SINGLE)


def forces_alone(learner: Learner, batch: torch.Tensor) -> torch.Tensor:
    x = learner.learnt.x[batch].requires_grad_()
    (slope,) = torch.autograd.grad(learner.net(x).sum(), x)
    return (slope[:, None] @ learner.learnt.slopes[batch] - learner.learnt.gradient[batch]).square().mean()
