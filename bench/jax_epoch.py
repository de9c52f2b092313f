"""Epochs of JAX for `bench.epoch`, in a process without PyTorch: one jitted scan over the batches of an epoch."""

from __future__ import annotations

import statistics
import sys
import time

from .jax_worker import main, student

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class Trainer:
    """The jitted epoch, made once."""

    def __init__(self):
        self.epochs: dict[tuple, object] = {}

    def epoch_of(self, batch: int, lr: float):
        if (batch, lr) not in self.epochs:
            self.epochs[batch, lr] = made(batch, lr)
        return self.epochs[batch, lr]

    def train(self, layers, arrays, batch: int, lr: float) -> tuple[float, list]:
        """Median seconds of an epoch after the first, and the weights at the end."""
        import jax
        import numpy

        *data, orders = map(jax.numpy.asarray, arrays)
        epoch = self.epoch_of(batch, lr)
        layers = jax.tree.map(jax.numpy.asarray, layers)
        state = layers, *(jax.tree.map(jax.numpy.zeros_like, layers) for _ in range(2)), jax.numpy.zeros(())
        jax.block_until_ready(epoch(jax.tree.map(lambda a: a + 0, state), data, orders[0]))  # compiled
        seconds = []
        for order in orders:
            start = time.perf_counter()
            state, loss = epoch(state, data, order)
            jax.block_until_ready((state, loss))
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[1:] or seconds), [tuple(map(numpy.asarray, layer)) for layer in state[0]]


def made(batch: int, lr: float):
    import jax

    jnp, forward = jax.numpy, student(jax)

    def loss_of(layers, x, y, dy):
        value, slope = jax.vmap(jax.value_and_grad(lambda x: forward(layers, "softplus", x)[0]))(x)
        return jnp.mean((value[:, None] - y) ** 2) + jnp.mean((slope - dy) ** 2)

    def step(state, some):
        layers, average, square, count = state
        loss, gradients = jax.value_and_grad(loss_of)(layers, *some)
        count = count + 1
        average = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, average, gradients)
        square = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, square, gradients)
        first, second = 1 - BETA1**count, 1 - BETA2**count
        move = lambda p, m, v: p - lr * (m / first) / (jnp.sqrt(v / second) + EPS)  # noqa: E731
        return (jax.tree.map(move, layers, average, square), average, square, count), loss

    def epoch(state, data, order):
        shuffled = [a[order].reshape(-1, batch, *a.shape[1:]) for a in data]
        return jax.lax.scan(step, state, shuffled)

    return jax.jit(epoch, donate_argnums=0)


TRAINER = Trainer()

if __name__ == "__main__":
    main(*sys.argv[1:], others={"train": TRAINER.train})
