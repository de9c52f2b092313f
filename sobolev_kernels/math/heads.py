"""The heads: functions of a student's outputs z [N, O] that values and derivatives are compared behind.

A head is a function of a = z / temperature, each output's own or, of those that are normalised over a sample's outputs,
of a less its log-sum-exp. It returns its value, Dh[t] of a tangent t, Dhᵀu of a cotangent u, and what the first owes
the values, the derivative of u·Dh[t] in a; all in units of a. Written like the activations (see there), and printed as
C++ by the same generator; docs/math.md, section 14.
"""

from __future__ import annotations

import torch

from ..errors import Fault, clipped, refuse
from . import primitives as m
from .table import Formula, Row, choose, table


def sigmoid(a, t, u):
    s = m.sigmoid(a)
    d1 = s * m.sigmoid(-a)
    return s, d1 * t, d1 * u, d1 * (1.0 - 2.0 * s) * t * u


def log_sigmoid(a, t, u):
    # the branches meet at 0, where the lower one has the slope
    above = a > 0.0
    e = m.exp(m.where(above, -a, a))
    d1 = m.sigmoid(-a)
    return m.where(above, 0.0, a) - m.log1p(e), d1 * t, d1 * u, -d1 * m.sigmoid(a) * t * u


SEPARATE = table(sigmoid, log_sigmoid, arguments=3)


# s is e^a, and of a sample's outputs st is the sum of s t, su of s u, stu of s t u and uu of u.


def softmax(a, s, t, u, st, su, stu, uu):
    return s, s * (t - st), s * (u - su), s * ((u - su) * (t - st) - (stu - su * st))


def log_softmax(a, s, t, u, st, su, stu, uu):
    return a, t - st, u - uu * s, -uu * s * (t - st)


NORMALISED = table(softmax, log_softmax, arguments=8)


TEMPERATURE = (("temperature", 1.0),)
HEADS = {name: Row(name, row.function, TEMPERATURE) for name, row in (SEPARATE | NORMALISED).items()}
# the least and the largest: 1 / T² is a number of float32
TEMPERATURES = 1e-12, 1e12


def is_normalised(head: Formula) -> bool:
    return head.name in NORMALISED


def gives_logarithms(head: Formula) -> bool:
    """Whether its values are logarithms of probabilities."""
    return head.name.startswith("log_")


def logits(head: Formula, z):
    """What likelihoods are functions of: z / T, or the logarithms of the probabilities of a sample's outputs."""
    a = z / head.parameters[0]
    return torch.log_softmax(a, -1) if is_normalised(head) else a


def total(x):
    """Over a sample's outputs."""
    return x.sum(-1, keepdim=True) if isinstance(x, torch.Tensor) else 0.0


def applied(head: Formula, z, t=0.0, u=0.0):
    """The four that a head returns, in units of a: of outputs z [N, O], tangents t and cotangents u, [P, N, O] or 0."""
    a, function = logits(head, z), HEADS[head.name].function
    if not is_normalised(head):
        return function(a, t, u)
    s = torch.softmax(z / head.parameters[0], -1)
    return function(a, s, t, u, total(s * t), total(s * u), total(s * t * u), total(u))


def value(head: Formula, z):
    """h(z)."""
    return applied(head, z)[0]


def pulled(head: Formula, z, u):
    """Dh(z)ᵀu."""
    return applied(head, z, u=u)[2] / head.parameters[0]


def derivatives(head: Formula, z, first, second=None):
    """Dh(z)[ż], and Dh(z)[z̈] + D²h(z)[ż, ż] of second derivatives; None of what is None."""
    t = None if first is None else first / head.parameters[0]
    if second is None:
        return None if t is None else applied(head, z, t)[1], None
    of_first, bent = applied(head, z, t)[1], curvature(head, z, t)
    return of_first, applied(head, z, second / head.parameters[0])[1] + bent


def curvature(head: Formula, z, t):
    """D²h[t, t], in units of a."""
    if not is_normalised(head):
        return applied(head, z, t, t)[3]
    s = torch.softmax(z / head.parameters[0], -1)
    squares = (t - total(s * t)) ** 2
    variance = total(s * squares)
    return (-variance).expand_as(t) if gives_logarithms(head) else s * (squares - variance)


def choose_head(choice: object) -> Formula | None:
    """A head by name, with its temperature; `APART` of a callable.

    Raises:
        TypeError, ValueError: in words.
    """
    if choice is None or choice == APART:
        return choice
    if isinstance(choice, type):
        hint = f"{clipped(choice.__name__, 60)}(...) may be one"
        refuse([Fault("head", EXPECTED, choice, TypeError, hint)])
    if callable(choice):
        return APART
    if not isinstance(choice, (str, tuple, Formula)):
        refuse([Fault("head", EXPECTED, choice, TypeError)])
    head, (least, most) = choose(HEADS, "head", choice), TEMPERATURES
    if not least <= head.parameters[0] <= most:
        refuse([Fault("head", f"a temperature from {least:g} to {most:g}", choice)])
    return head


EXPECTED = f"None, one of {', '.join(HEADS)}, (name, temperature), or a callable of the outputs"
# of a head that is a callable, which goes beside the settings
APART = Formula("a callable")
