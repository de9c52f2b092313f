"""Equations of named derivatives, for `bench --partials`: plain Python, so that JAX's process reads them too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Parts = Mapping[str, Any]


class Equation(NamedTuple):
    """Residuals as they are written by hand; ours are `inside` and its derivatives `by` inputs, where that is said."""

    fields: str
    residuals: Callable[[Parts], tuple]
    inside: Callable[[Parts], Any] | None = None
    by: tuple[str, ...] = ()


def burgers(p: Parts) -> tuple:
    return (p["u_t"] + p["u"] * p["u_x"] - 0.01 * p["u_xx"],)


def allen_cahn(p: Parts) -> tuple:
    return (p["u_t"] - 1e-4 * p["u_xx"] + p["u"] ** 3 - p["u"],)


def kdv(p: Parts) -> tuple:
    return (p["u_t"] + 6 * p["u"] * p["u_x"] + p["u_xxx"],)


def sivashinsky(p: Parts) -> tuple:
    return (p["u_t"] + p["u"] * p["u_x"] + p["u_xx"] + p["u_xxxx"],)


def biharmonic(p: Parts) -> tuple:
    return (p["u_xxxx + 2*u_xxyy + u_yyyy"] - 1,)


def navier_stokes(p: Parts) -> tuple:
    u, v = p["u"], p["v"]
    along = [p[f"{f}_t"] + u * p[f"{f}_x"] + v * p[f"{f}_y"] + p[f"p_{d}"] for f, d in (("u", "x"), ("v", "y"))]
    return along[0] - 0.01 * p["u_xx + u_yy"], along[1] - 0.01 * p["v_xx + v_yy"], p["u_x"] + p["v_y"]


def stream_function(p: Parts) -> tuple:
    """The same of a stream function s: u = s_y, v = -s_x."""
    u, v = p["s_y"], -p["s_x"]
    of_u = p["s_yt"] + u * p["s_xy"] + v * p["s_yy"] + p["p_x"] - 0.01 * p["s_xxy + s_yyy"]
    of_v = -p["s_xt"] - u * p["s_xx"] - v * p["s_xy"] + p["p_y"] + 0.01 * p["s_xxx + s_xyy"]
    return of_u, of_v


def with_derivatives(p: Parts) -> tuple:
    by_x = p["u_xt"] + p["u_x"] ** 2 + p["u"] * p["u_xx"] - 0.01 * p["u_xxx"]
    by_t = p["u_tt"] + p["u_t"] * p["u_x"] + p["u"] * p["u_xt"] - 0.01 * p["u_xxt"]
    return *burgers(p), by_x, by_t


EQUATIONS = {
    "Burgers": Equation("x t -> u", burgers),
    "Allen-Cahn": Equation("x t -> u", allen_cahn),
    "KdV": Equation("x t -> u", kdv),
    "Kuramoto-Sivashinsky": Equation("x t -> u", sivashinsky),
    "biharmonic": Equation("x y -> u", biharmonic),
    "Navier-Stokes": Equation("x y t -> u v p", navier_stokes),
    "stream-function": Equation("x y t -> s p", stream_function),
    "with-derivatives": Equation("x t -> u", with_derivatives, burgers, ("x", "t")),
}


def loss_of(equation: Equation, parts: Parts) -> Any:
    return sum((residual**2).mean() for residual in equation.residuals(parts))
