"""The activations: each is one function returning σ(z), σ'(z), σ''(z) and σ'''(z).

A function is straight-line arithmetic over `m` (the primitives) ending in one return; its parameters follow `z` with
their defaults. PyTorch calls it as it stands, `csrc/math/generate.py` prints the same text as C++. A derivative
that is zero or one everywhere is returned as that number.

The reference differentiates the text again. So at a join of `where` the branch that is taken has the slopes of the
function, of all orders, and neither branch is infinite where the other is taken. What is 0 beyond some |z| is computed
of a clamped z, or a power of z would overflow and make NaN of it: e^-800 is 0 in float64 too. NaN stays NaN.
"""

import torch

from . import primitives as m
from .table import Formula, table


def identity(z):
    return z, 1.0, 0.0, 0.0


def relu(z):
    rest = m.where(z < 0.0, 0.0, 0.0 * z)
    return m.where(z > 0.0, z, rest), m.where(z > 0.0, 1.0, rest), 0.0, 0.0


def leaky_relu(z, slope=0.01):
    d1 = m.where(z > 0.0, 1.0, m.where(z < 0.0, slope, slope + 0.0 * z))
    return d1 * z, d1, 0.0, 0.0


def elu(z, alpha=1.0):
    # at 0 torch has the slope from below, alpha, and the second derivative from above, 0
    above = z > 0.0
    below = z < 0.0
    c = m.where(above, 0.0, m.where(below, z, 0.0 * z))
    e = alpha * m.exp(c)
    d2 = m.where(below, e, 0.0 * e)
    value = m.where(above, z, m.where(below, alpha * m.expm1(c), alpha * z))
    return value, m.where(above, 1.0, e), d2, d2


def tanh(z):
    t = m.tanh(z)
    d1 = 1.0 - t * t
    d2 = -2.0 * t * d1
    return t, d1, d2, -2.0 * (d1 * d1 + t * d2)


def sigmoid(z):
    s = m.sigmoid(z)
    d1 = s * (1.0 - s)
    return s, d1, d1 * (1.0 - 2.0 * s), d1 * (1.0 - 6.0 * d1)


def softplus(z, beta=1.0, threshold=20.0):
    # torch's own softplus is the identity above the threshold, to the last bit of its derivatives; at the threshold its
    # slope is that from below, and its second derivative that from above, 0, as of the line there
    u = beta * z
    linear = u > threshold
    curved = u < threshold
    c = m.where(linear, 0.0, m.where(curved, u, threshold + 0.0 * z))
    line = m.where(linear, 0.0, m.where(curved, 0.0, u - threshold))
    # log(1 + e^c) and its slope from one exponential; c = 0 belongs to the branch below everywhere: |c| would lose its
    # slope there
    above = c > 0.0
    e = m.exp(m.where(above, -c, c))
    q = 1.0 / (1.0 + e)
    s = m.where(linear, 1.0, m.where(above, q, e * q))
    r = m.where(curved, s * (1.0 - s), 0.0 * s)
    value = m.where(above, c, 0.0) + m.log1p(e) + s * line
    return m.where(linear, z, value / beta), s, beta * r, beta * beta * r * (1.0 - 2.0 * s)


def silu(z):
    c = m.clamp(z, -800.0, 800.0)
    s = m.sigmoid(c)
    r = s * (1.0 - s)
    q = 1.0 - 2.0 * s
    return z * s, s + c * r, r * (2.0 + c * q), r * (3.0 * q + c * (1.0 - 6.0 * r))


def gelu(z):
    # Φ and φ of the standard normal distribution: 0.7071… = 1/√2, 0.3989… = 1/√(2π)
    c = m.clamp(z, -800.0, 800.0)
    cdf = 0.5 + 0.5 * m.erf(0.7071067811865476 * c)
    pdf = 0.3989422804014327 * m.exp(-0.5 * c * c)
    return z * cdf, cdf + c * pdf, pdf * (2.0 - c * c), pdf * c * (c * c - 4.0)


def gelu_tanh(z):
    # t = tanh(u) = p - q with p = (1 + t) / 2, q = (1 - t) / 2, which keep their digits where t is near ±1;
    # u = √(2/π) (z + 0.044715 z³); t1, t2, t3 are the derivatives of t in z
    c = m.clamp(z, -800.0, 800.0)
    u = 0.7978845608028654 * c * (1.0 + 0.044715 * c * c)
    u1 = 0.7978845608028654 * (1.0 + 0.134145 * c * c)
    u2 = 0.21406444881780076 * c
    u3 = 0.21406444881780076
    p = m.sigmoid(2.0 * u)
    q = m.sigmoid(-2.0 * u)
    t = p - q
    s = 4.0 * p * q
    t1 = s * u1
    t2 = s * (u2 - 2.0 * t * u1 * u1)
    t3 = s * (u3 - 6.0 * t * u1 * u2 + (4.0 * t * t - 2.0 * s) * u1 * u1 * u1)
    return z * p, p + 0.5 * c * t1, t1 + 0.5 * c * t2, 1.5 * t2 + 0.5 * c * t3


def sin(z, omega=1.0):
    s = m.sin(omega * z)
    c = m.cos(omega * z)
    return s, omega * c, -omega * omega * s, -omega * omega * omega * c


def softsign(z):
    # torch's own derivatives at 0, where sign is 0; of a large z, 1 - r is left even where r is too small to be there
    near = m.abs(z) < 1.0
    r = 1.0 / (1.0 + m.abs(z))
    sign = m.where(z > 0.0, 1.0, m.where(z < 0.0, -1.0, 0.0 * z))
    value = m.where(near, m.where(near, z, 0.0) * r, sign * (1.0 - r))
    return value, r * r, -2.0 * sign * r * r * r, 6.0 * sign * sign * r * r * r * r


def mish(z):
    # z tanh(log(1 + e^z)); with e = e^-|z| tanh is num / (num + 2w), and nothing cancels or overflows on either side
    c = m.clamp(z, -800.0, 800.0)
    above = c > 0.0
    e = m.exp(m.where(above, -c, c))
    num = m.where(above, 1.0 + 2.0 * e, e * (e + 2.0))
    w = m.where(above, e * e, 1.0 + 0.0 * e)
    r = 1.0 / (num + 2.0 * w)
    s = m.sigmoid(c)
    t = num * r
    # t1, t2, t3 are the derivatives of t in z; 1 - t² = 4 w (1 + e)² r²
    u = (1.0 + e) * r
    t1 = 4.0 * w * u * u * s
    q = 1.0 - s - 2.0 * t * s
    t2 = t1 * q
    t3 = t2 * q - t1 * s * (1.0 - s + 2.0 * t1 + 2.0 * t * (1.0 - s))
    return z * t, t + c * t1, 2.0 * t1 + c * t2, 3.0 * t2 + c * t3


ACTIVATIONS = table(
    identity, relu, leaky_relu, elu, tanh, sigmoid, softplus, silu, gelu, gelu_tanh, sin, softsign, mish
)  # fmt: skip


def activation_jet(activation: Formula, z):
    """σ(z), σ'(z), σ''(z), σ'''(z) of a torch tensor of any shape and floating dtype."""
    return ACTIVATIONS[activation.name].function(z, *activation.parameters)


def is_curved(activation: Formula) -> bool:
    """Whether σ'' is more than the number 0."""
    return not isinstance(activation_jet(activation, torch.zeros((), dtype=torch.float32, device="cpu"))[2], float)
