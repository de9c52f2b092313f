"""Ensembles by `torch.func.vmap` over stacked parameters: the numbers of a loop over the members, or a refusal."""

import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

import sobolev_kernels as sk
from sobolev_kernels.testing.rule import ANOTHER_WAY

K, N, D, O, P = 3, 6, 3, 2, 2
G = torch.Generator().manual_seed(5)
X, Y, J, V, EACH = (
    torch.randn(shape, generator=G, dtype=torch.float64)
    for shape in ((N, D), (N, O), (N, O, D), (P, N, D), (K, N, D))
)  # fmt: skip
MEMBERS = {
    "MLP": lambda: sk.MLP(D, O, width=4).double(),
    "another": lambda: nn.Sequential(nn.Linear(D, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, O)).double(),
}
ALONG = {
    "seeded": {"directions": sk.Directions.sphere(P, seed=1)},
    "given": {"directions": sk.Directions.given(V)},
    "cotangents": {"cotangents": sk.Cotangents.sphere(P, seed=1)},
    "exact": {"derivatives": "exact"},
    "order 2": {"directions": sk.Directions.sphere(P, seed=1), "order": 2},
}
FRESH = {"directions": sk.Directions.normal(P)}
FRAMES = {"directions": sk.Directions.orthonormal(D)}  # along which the loss is the exact one, whatever they are


def targets_of(settings):
    return sk.Targets(teacher=lambda x: torch.stack((x.prod(1), x.sin().sum(1)), 1)) if "order" in settings else TARGETS


TARGETS = sk.Targets(values=Y, jacobian=J)


class Loss(nn.Module):
    """A loss of a student below it, whose parameters are put in the place of his own."""

    def __init__(self, student, settings):
        super().__init__()
        self.student, self.settings = student, settings

    def forward(self, x):
        return sk.sobolev_loss(self.student, x, targets_of(self.settings), **self.settings)


def of_function(base, settings):
    def loss(parameters, x):
        student = lambda x: functional_call(base, parameters, (x,))  # noqa: E731
        return sk.sobolev_loss(student, x, targets_of(settings), **settings)

    return loss


def of_module(base, settings):
    module = Loss(base, settings)
    return lambda parameters, x: functional_call(module, {f"student.{n}": p for n, p in parameters.items()}, (x,))


WAYS = {"function": of_function, "module": of_module}


def ensemble(name, same=False):
    torch.manual_seed(2)
    members = [MEMBERS[name]() for _ in range(K)]
    for member in members:
        if same:
            member.load_state_dict(members[0].state_dict())
    return members, stack_module_state(members)[0]


@pytest.mark.parametrize("along", ALONG)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MEMBERS)
def test_numbers_of_a_loop(name, way, along):
    """Of the same inputs and of each member's own; by autograd, and by torch.func.grad within."""
    settings = ALONG[along] | ({"backend": "reference"} if (name, way) == ("MLP", "module") else {})
    members, parameters = ensemble(name)
    loss = WAYS[way](members[0], settings)
    for x, dim in ((X, None), (EACH, 0)):
        expected = []
        for k, member in enumerate(members):
            value = sk.sobolev_loss(member, X if dim is None else EACH[k], targets_of(settings), **settings)
            expected.append([value, *torch.autograd.grad(value, list(member.parameters()))])
        values, *gradients = map(torch.stack, zip(*expected, strict=True))
        got = vmap(loss, in_dims=(0, dim))(parameters, x)
        torch.testing.assert_close(got, values, **ANOTHER_WAY)
        summed = torch.autograd.grad(got.sum(), list(parameters.values()))
        inner = vmap(grad(loss), in_dims=(0, dim))(parameters, x)
        for gradient in (list(summed), list(inner.values())):
            torch.testing.assert_close(gradient, gradients, **ANOTHER_WAY)


@pytest.mark.parametrize("randomness", ["different", "same", "error"])
@pytest.mark.parametrize("name", MEMBERS)
def test_directions_that_are_drawn(name, randomness):
    """For each member its own, or the same for all, or none."""
    members, parameters = ensemble(name, same=True)
    for settings in (FRESH, FRAMES):
        loss = of_function(members[0], settings)
        call = lambda f: vmap(f, in_dims=(0, None), randomness=randomness)(parameters, X)  # noqa: E731
        if randomness == "error":
            for function in (loss, grad(loss)):
                with pytest.raises(sk.NotProvided, match="randomness='different', for each member"):
                    call(function)
            continue
        found = [call(loss) for _ in range(2)]
        gradients = call(grad(loss))
        if settings is FRAMES:
            exact = sk.sobolev_loss(members[0], X, TARGETS, derivatives="exact")
            expected = torch.autograd.grad(exact, list(members[0].parameters()))
            torch.testing.assert_close(found, [exact.detach().expand(K)] * 2, check_layout=False, **ANOTHER_WAY)
            got = [gradient[k] for k in range(K) for gradient in gradients.values()]
            torch.testing.assert_close(got, [*expected] * K, **ANOTHER_WAY)
        else:
            assert not set(found[0].tolist()) & set(found[1].tolist())
            assert len(set(found[0].tolist())) == (K if randomness == "different" else 1)


def test_a_fused_step_says_what_to_do():
    members, parameters = ensemble("MLP")
    for settings in (*ALONG.values(), FRESH):
        if "order" not in settings:
            with pytest.raises(sk.NotProvided, match="of an ensemble a call for each member"):
                vmap(of_module(members[0], settings), in_dims=(0, None), randomness="same")(parameters, X)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_by_itself_is_what_it_was(name):
    """Nothing that was found of it within a transform is taken for what it is outside; nothing is warned of."""
    members, parameters = ensemble(name)
    expected = sk.sobolev_loss(members[0], X, TARGETS, **ALONG["seeded"], backend="reference")
    for way in WAYS.values():
        for settings in (ALONG["seeded"], FRESH):
            loss = way(members[0], settings | {"backend": "reference"})
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                for _ in range(3):
                    vmap(grad(loss), in_dims=(0, None), randomness="different")(parameters, X)
        for _ in range(2):
            torch.testing.assert_close(sk.sobolev_loss(members[0], X, TARGETS, **ALONG["seeded"]), expected)
