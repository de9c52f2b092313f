"""The steps of JAX, in a process without PyTorch that has nothing to do while others are timed.

It answers requests that come by a pipe (jax_baseline.py), and computes only then. Everything is one jitted function of
loss and gradients; numbers are float32, and results are waited for.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable
from typing import BinaryIO

# Seconds after which threads that wait for work have stopped to spin: libgomp's take 6 ms
SETTLE = 0.03


def student(jax) -> Callable:
    """The student's forward pass, of layers (weight [n_{l-1}, n_l], bias) and the name of an activation."""
    functions = {
        "tanh": jax.numpy.tanh, "sigmoid": jax.nn.sigmoid, "softplus": jax.nn.softplus, "silu": jax.nn.silu,
        "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    }  # fmt: skip

    def forward(layers, activation, x):  # [..., D] -> [..., O]
        for weight, bias in layers[:-1]:
            x = functions[activation](x @ weight + bias)
        weight, bias = layers[-1]
        return x @ weight + bias

    return forward


def losses(jax) -> dict[str, Callable]:
    """By way: the loss from the layers, the activation and the data by name."""
    jnp, forward = jax.numpy, student(jax)
    square = lambda a, b: jnp.mean((a - b) ** 2)  # noqa: E731

    def vmap_jvp(layers, activation, data):
        jvp = lambda v: jax.jvp(lambda x: forward(layers, activation, x), (data["x"],), (v,))  # noqa: E731
        y, tangents = jax.vmap(jvp, out_axes=(None, 0))(data["directions"])
        return square(y, data["y"]) + square(tangents, data["tangents"])

    def rows(layers, activation, data):
        """Values [N, O] and the Jacobian [N, O, D], by rows or columns, whichever are fewer."""
        model = lambda x: forward(layers, activation, x)  # noqa: E731
        D, O = data["x"].shape[1], data["y"].shape[1]
        if O == 1:
            y, row = jax.vmap(jax.value_and_grad(lambda x: model(x)[0]))(data["x"])
            return y[:, None], row[:, None]
        jacobian = jax.jacfwd if D < O else jax.jacrev
        jacobian, y = jax.vmap(jacobian(lambda x: (model(x), model(x)), has_aux=True))(data["x"])
        return y, jacobian

    def exact(layers, activation, data):
        y, jacobian = rows(layers, activation, data)
        return square(y, data["y"]) + square(jacobian, data["jacobian"])

    def projected(layers, activation, data):
        y, jacobian = rows(layers, activation, data)
        tangents = jnp.einsum("nod,pnd->pno", jacobian, data["directions"])
        return square(y, data["y"]) + square(tangents, data["tangents"])

    def gradient(layers, activation, data):
        y, pull = jax.vjp(lambda x: forward(layers, activation, x), data["x"])
        return y, pull(data["cotangents"][0])[0]

    def teacher(layers, activation, data):
        (y, g), (target, slope) = gradient(layers, activation, data), gradient(data["teacher"], "tanh", data)
        return square(y, target) + square(g, slope)

    def vjp(layers, activation, data):
        (y, g), (target, slope) = gradient(layers, activation, data), gradient(data["teacher"], "tanh", data)
        log, wanted = jax.nn.log_softmax(y), jax.nn.log_softmax(target)
        divergence = jnp.mean(jnp.sum(jnp.exp(wanted) * (wanted - log), -1))
        return divergence + jnp.mean(jnp.sum((g - slope) ** 2, -1))

    return {f.__name__: f for f in (vmap_jvp, exact, projected, teacher, vjp)}


def build(way: str, activation: str, layers: list, data: dict) -> Callable[[], tuple]:
    """A step: returns loss and gradients (of weights [n_{l-1}, n_l] and biases), computed."""
    import jax

    loss = losses(jax)[way]
    layers, data = jax.tree.map(jax.numpy.asarray, (layers, data))
    whole = jax.jit(jax.value_and_grad(lambda layers, data: loss(layers, activation, data)))
    return lambda: jax.block_until_ready(whole(layers, data))


def timed(step: Callable[[], object], calls: int) -> float:
    """Seconds of a call, after one that is not counted."""
    step()
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls


def serve(
    requests: BinaryIO, answers: BinaryIO, build: Callable[..., Callable[[], tuple]] = build,
    others: dict[str, Callable] | None = None,
) -> None:  # fmt: skip
    """Until there are no more requests. (answer, error, seconds of CPU that this process took since the last answer)"""
    import numpy

    steps: list[Callable[[], tuple]] = []
    idle = time.process_time()
    while True:
        try:
            what, *arguments = pickle.load(requests)
        except EOFError:
            return
        idle, answer, error = time.process_time() - idle, None, ""
        try:
            if what == "build":
                steps.append(build(*arguments))
                loss, gradients = steps[-1]()
                answer = len(steps) - 1, numpy.asarray(loss), [[numpy.asarray(g) for g in pair] for pair in gradients]
            elif what in (others or {}):
                answer = others[what](*arguments)
            else:
                number, calls = arguments
                answer = timed(steps[number], calls)
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        time.sleep(SETTLE)
        pickle.dump((answer, error, idle), answers)
        answers.flush()
        idle = time.process_time()


def main(
    threads: str, build: Callable[..., Callable[[], tuple]] = build, others: dict[str, Callable] | None = None
) -> None:  # fmt: skip
    """On as many processors as we have threads, for JAX's threads are as many as its processors."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    answers = os.fdopen(os.dup(1), "wb")
    # what libraries print must not come between the answers
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers, build, others)


if __name__ == "__main__":
    main(*sys.argv[1:])
