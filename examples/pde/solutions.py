"""Solutions by other means than a network, in float64: a quadrature, Fourier modes, finite differences."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def cole_hopf(x: np.ndarray, t: np.ndarray, nu: float, nodes: int = 120) -> np.ndarray:
    """u of u_t + u u_x = ν u_xx with u(x, 0) = -sin πx, by the transform of Cole and Hopf and Gauss-Hermite nodes:
    u = -∫ sin π(x-η) f(x-η) e^(-η²/4νt) dη / ∫ f(x-η) e^(-η²/4νt) dη,  f(y) = e^(-cos πy / 2πν)."""
    z, w = np.polynomial.hermite.hermgauss(nodes)
    y = x[..., None] - 2 * np.sqrt(nu * t[..., None]) * z
    exponent = -np.cos(np.pi * y) / (2 * np.pi * nu)
    # the largest is taken out, so that none overflows
    f = w * np.exp(exponent - exponent.max(-1, keepdims=True))
    return -(np.sin(np.pi * y) * f).sum(-1) / f.sum(-1)


@lru_cache(maxsize=2)
def sivashinsky(nu: float, modes: int, times: int, end: float, steps: int = 2000) -> np.ndarray:
    """u [times, modes] of u_t + u u_x + u_xx + ν u_xxxx = 0 on [-π, π), u(x, 0) = -sin x, at equal times from 0 to the
    end: Fourier modes without their upper third, and Runge and Kutta's fourth order with the linear part exact."""
    x = -np.pi + 2 * np.pi * np.arange(modes) / modes
    k = np.fft.rfftfreq(modes, 1 / modes)
    linear, keep, dt = k**2 - nu * k**4, k < modes / 3, end / steps
    half = np.exp(linear * dt / 2)

    def slope(v: np.ndarray) -> np.ndarray:
        return -0.5j * k * keep * np.fft.rfft(np.fft.irfft(v * keep, modes) ** 2)

    v, found = np.fft.rfft(-np.sin(x)), []
    every = steps // (times - 1)
    for step in range(steps + 1):
        if step % every == 0:
            found.append(np.fft.irfft(v, modes))
        a = slope(v)
        b = slope(half * (v + dt / 2 * a))
        c = slope(half * v + dt / 2 * b)
        d = slope(half**2 * v + dt * half * c)
        v = half**2 * v + dt / 6 * (half**2 * a + 2 * half * (b + c) + d)
    return np.stack(found)[:times]


def lid(x: np.ndarray) -> np.ndarray:
    """The speed of a lid that has no jump at its ends."""
    return 16 * x**2 * (1 - x) ** 2


@lru_cache(maxsize=2)
def cavity(reynolds: float, n: int = 65, time: float = 25.0) -> np.ndarray:
    """u and v [2, n, n], by [y, x], of a steady flow in the unit square under a lid: vorticity and stream function by
    central differences of second order, stepped in time until it rests; Poisson's equation by sines."""
    h, m = 1 / (n - 1), n - 2
    k = np.arange(1, m + 1)
    sines = np.sqrt(2 / (m + 1)) * np.sin(np.pi * np.outer(k, k) / (m + 1))
    each = (2 - 2 * np.cos(np.pi * k / (m + 1))) / h**2
    eigenvalues = each[:, None] + each
    dt = 0.8 * min(h * h * reynolds / 4, 2 / reynolds, h)
    w, psi, top = np.zeros((n, n)), np.zeros((n, n)), lid(np.linspace(0, 1, n))
    inside = slice(1, -1), slice(1, -1)
    for _ in range(int(time / dt)):
        psi[inside] = sines @ ((sines @ w[inside] @ sines) / eigenvalues) @ sines
        w[0], w[-1] = -2 * psi[1] / h**2, -2 * psi[-2] / h**2 - 2 * top / h
        w[:, 0], w[:, -1] = -2 * psi[:, 1] / h**2, -2 * psi[:, -2] / h**2
        u = (psi[2:, 1:-1] - psi[:-2, 1:-1]) / (2 * h)
        v = -(psi[1:-1, 2:] - psi[1:-1, :-2]) / (2 * h)
        w_x, w_y = (w[1:-1, 2:] - w[1:-1, :-2]) / (2 * h), (w[2:, 1:-1] - w[:-2, 1:-1]) / (2 * h)
        around = w[2:, 1:-1] + w[:-2, 1:-1] + w[1:-1, 2:] + w[1:-1, :-2] - 4 * w[inside]
        w[inside] += dt * (around / h**2 / reynolds - u * w_x - v * w_y)
    found = np.zeros((2, n, n))
    found[0][inside], found[1][inside] = u, v
    found[0, -1] = top
    return found
