"""JAX's steps of `bench --partials`, in a process without PyTorch: jitted, by its Taylor mode or by nested jvp."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache

from .equations import EQUATIONS, loss_of
from .jax_worker import main, student
from .resident import peak_of
from .taylor import Rows, Series, nested, summed


def build(
    name: str, layers: list, x, rows: Rows, names: Sequence[str], series: Series | None
) -> Callable[[], tuple]:  # fmt: skip
    """A step: loss and gradients of weights [n_{l-1}, n_l] and biases, computed. Without a series by jvp of jvp."""
    import jax
    from jax.experimental.jet import jet

    jnp, forward, equation = jax.numpy, student(jax), EQUATIONS[name]

    def by_jet(function, x):
        found = []
        for bundle in series.bundles:
            zeros = [jnp.zeros_like(x)] * (bundle.order - 1)
            along = lambda v, zeros=zeros: jet(function, (x,), ((jnp.broadcast_to(v, x.shape), *zeros),))  # noqa: E731
            value, others = jax.vmap(along, out_axes=(None, 0))(jnp.asarray(bundle.along))
            found.append([value, *others])
        return summed(series, found, names)

    def by_jvp(function, x):
        def derived(e):
            i = next((i for i, n in enumerate(e) if n), None)
            if i is None:
                return function
            below, along = derived((*e[:i], e[i] - 1, *e[i + 1 :])), jnp.zeros_like(x).at[:, i].set(1)
            return lambda x: jax.jvp(below, (x,), (along,))[1]

        return nested(lru_cache(maxsize=None)(lambda e: derived(e)(x)), rows, names)

    def loss(layers, x):
        parts = (by_jvp if series is None else by_jet)(lambda x: forward(layers, "tanh", x), x)
        return loss_of(equation, parts)

    layers, x = jax.tree.map(jnp.asarray, (layers, x))
    whole = jax.jit(jax.value_and_grad(loss))
    return lambda: jax.block_until_ready(whole(layers, x))


def peak(*arguments: object) -> int:
    """Bytes of a step, after one that compiled it."""
    step = build(*arguments)
    step()
    return peak_of(step)


if __name__ == "__main__":
    main(*sys.argv[1:], build=build, others={"peak": peak})
