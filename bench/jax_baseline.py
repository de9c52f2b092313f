"""The JAX contestant, for `python -m bench --jax`: jit(value_and_grad) of vmap(jvp)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch

from .baselines import Result, Step, layers_of
from .cases import Case, Data


def forward(layers, x):  # [N, D] -> [N, O]
    for weight, bias in layers[:-1]:
        x = jnp.tanh(x @ weight.T + bias)
    weight, bias = layers[-1]
    return x @ weight.T + bias


def vmap_jvp(layers, x, y, directions, tangents):
    along = lambda v: jax.jvp(lambda x: forward(layers, x), (x,), (v,))  # noqa: E731
    got, slopes = jax.vmap(along, out_axes=(None, 0))(directions)
    return jnp.mean((got - y) ** 2) + jnp.mean((slopes - tangents) ** 2)


def build(case: Case, student: torch.nn.Module, data: Data) -> Step:
    convert = lambda tensor: jnp.asarray(tensor.detach().numpy())  # noqa: E731
    layers = [(convert(weight), convert(bias)) for weight, bias, _ in layers_of(student)]
    arrays = [convert(t) for t in (data.x, data.y, data.directions, data.tangents)]
    whole = jax.jit(jax.value_and_grad(vmap_jvp))

    def step() -> Result:
        loss, gradients = jax.block_until_ready(whole(layers, *arrays))
        return torch.from_dlpack(loss), tuple(torch.from_dlpack(g) for pair in gradients for g in pair)

    return step
