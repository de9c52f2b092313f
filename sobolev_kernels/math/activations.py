"""The activations: each is one function returning σ(z) and its derivatives σ'(z) … σ⁽⁵⁾(z).

A function is straight-line arithmetic over `m` (the primitives) ending in one return; its parameters follow `z` with
their defaults. PyTorch runs of it what the results that are asked for need (`pruned.py`); `csrc/math/generate.py`
prints the same text as C++, to σ''' and whole, and Triton drops what nobody reads. A derivative that is zero or one
everywhere is returned as that number. Closed forms: docs/math.md, section 7.

The reference differentiates the text again. So at a join of `where` the branch that is taken has the slopes of the
function, of all orders, and neither branch is infinite where the other is taken. What is 0 beyond some |z| is computed
of a clamped z, or a power of z would overflow and make NaN of it: e^-800 is 0 in float64 too. NaN stays NaN.
"""

from functools import lru_cache

import torch

from . import primitives as m
from .pruned import first
from .table import Formula, table


def identity(z):
    return z, 1.0, 0.0, 0.0, 0.0, 0.0


def relu(z):
    rest = m.where(z < 0.0, 0.0, 0.0 * z)
    return m.where(z > 0.0, z, rest), m.where(z > 0.0, 1.0, rest), 0.0, 0.0, 0.0, 0.0


def leaky_relu(z, slope=0.01):
    d1 = m.where(z > 0.0, 1.0, m.where(z < 0.0, slope, slope + 0.0 * z))
    return d1 * z, d1, 0.0, 0.0, 0.0, 0.0


def elu(z, alpha=1.0):
    # at 0 torch has the slope from below, alpha, and the second derivative from above, 0
    above = z > 0.0
    below = z < 0.0
    c = m.where(above, 0.0, m.where(below, z, 0.0 * z))
    e = alpha * m.exp(c)
    d2 = m.where(below, e, 0.0 * e)
    value = m.where(above, z, m.where(below, alpha * m.expm1(c), alpha * z))
    return value, m.where(above, 1.0, e), d2, d2, d2, d2


def tanh(z):
    t = m.tanh(z)
    d1 = 1.0 - t * t
    d2 = -2.0 * t * d1
    d5 = d1 * (16.0 + 120.0 * d1 * (d1 - 1.0))
    return t, d1, d2, -2.0 * (d1 * d1 + t * d2), d2 * (4.0 - 12.0 * d1), d5


def sigmoid(z):
    s = m.sigmoid(z)
    d1 = s * (1.0 - s)
    d4 = d1 * (1.0 - 2.0 * s) * (1.0 - 12.0 * d1)
    d5 = d1 * (1.0 + 30.0 * d1 * (4.0 * d1 - 1.0))
    return s, d1, d1 * (1.0 - 2.0 * s), d1 * (1.0 - 6.0 * d1), d4, d5


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
    d4 = beta * beta * beta * r * (1.0 - 6.0 * r)
    d5 = beta * beta * beta * beta * r * (1.0 - 2.0 * s) * (1.0 - 12.0 * r)
    return m.where(linear, z, value / beta), s, beta * r, beta * beta * r * (1.0 - 2.0 * s), d4, d5


def silu(z):
    c = m.clamp(z, -800.0, 800.0)
    s = m.sigmoid(c)
    r = s * (1.0 - s)
    q = 1.0 - 2.0 * s
    d4 = r * (4.0 * (1.0 - 6.0 * r) + c * q * (1.0 - 12.0 * r))
    d5 = r * (5.0 * q * (1.0 - 12.0 * r) + c * (1.0 + 30.0 * r * (4.0 * r - 1.0)))
    return z * s, s + c * r, r * (2.0 + c * q), r * (3.0 * q + c * (1.0 - 6.0 * r)), d4, d5


def gelu(z):
    # Φ and φ of the standard normal distribution: 0.7071… = 1/√2, 0.3989… = 1/√(2π)
    c = m.clamp(z, -800.0, 800.0)
    cdf = 0.5 + 0.5 * m.erf(0.7071067811865476 * c)
    pdf = 0.3989422804014327 * m.exp(-0.5 * c * c)
    d4 = pdf * (c * c * (7.0 - c * c) - 4.0)
    d5 = pdf * c * (c * c * (c * c - 11.0) + 18.0)
    return z * cdf, cdf + c * pdf, pdf * (2.0 - c * c), pdf * c * (c * c - 4.0), d4, d5


def gelu_tanh(z):
    # t = tanh(u) = p - q with p = (1 + t) / 2, q = (1 - t) / 2, which keep their digits where t is near ±1;
    # u = √(2/π) (z + 0.044715 z³); t1 … t5 are the derivatives of t in z
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
    f3 = 4.0 - 6.0 * s
    f4 = t * (24.0 * s - 8.0)
    f5 = 16.0 + 120.0 * s * (s - 1.0)
    t4 = s * (f4 * u1 * u1 * u1 * u1 + 6.0 * f3 * u1 * u1 * u2 - 2.0 * t * (3.0 * u2 * u2 + 4.0 * u1 * u3))
    f5u = f5 * u1 * u1 * u1 * u1 * u1 + 10.0 * f4 * u1 * u1 * u1 * u2
    t5 = s * (f5u + f3 * (15.0 * u1 * u2 * u2 + 10.0 * u1 * u1 * u3) - 20.0 * t * u2 * u3)
    d4 = 2.0 * t3 + 0.5 * c * t4
    return z * p, p + 0.5 * c * t1, t1 + 0.5 * c * t2, 1.5 * t2 + 0.5 * c * t3, d4, 2.5 * t4 + 0.5 * c * t5


def sin(z, omega=1.0):
    s = m.sin(omega * z)
    c = m.cos(omega * z)
    fourth = omega * omega * omega * omega
    return s, omega * c, -omega * omega * s, -omega * omega * omega * c, fourth * s, fourth * omega * c


def softsign(z):
    # torch's own derivatives at 0, where sign is 0; of a large z, 1 - r is left even where r is too small to be there
    near = m.abs(z) < 1.0
    r = 1.0 / (1.0 + m.abs(z))
    sign = m.where(z > 0.0, 1.0, m.where(z < 0.0, -1.0, 0.0 * z))
    value = m.where(near, m.where(near, z, 0.0) * r, sign * (1.0 - r))
    r3 = r * r * r
    d5 = 120.0 * sign * sign * r3 * r3
    return value, r * r, -2.0 * sign * r * r * r, 6.0 * sign * sign * r * r * r * r, -24.0 * sign * r3 * r * r, d5


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
    # t1 … t5 are the derivatives of t in z, q1 … q3 of q, s1 … s3 of s; 1 - t² = 4 w (1 + e)² r²
    u = (1.0 + e) * r
    t1 = 4.0 * w * u * u * s
    q = 1.0 - s - 2.0 * t * s
    t2 = t1 * q
    t3 = t2 * q - t1 * s * (1.0 - s + 2.0 * t1 + 2.0 * t * (1.0 - s))
    s1 = s * (1.0 - s)
    s2 = s1 * (1.0 - 2.0 * s)
    s3 = s1 * (1.0 - 6.0 * s1)
    q1 = -s1 - 2.0 * (t1 * s + t * s1)
    q2 = -s2 - 2.0 * (t2 * s + 2.0 * t1 * s1 + t * s2)
    q3 = -s3 - 2.0 * (t3 * s + 3.0 * (t2 * s1 + t1 * s2) + t * s3)
    t4 = t3 * q + 2.0 * t2 * q1 + t1 * q2
    t5 = t4 * q + 3.0 * (t3 * q1 + t2 * q2) + t1 * q3
    return z * t, t + c * t1, 2.0 * t1 + c * t2, 3.0 * t2 + c * t3, 4.0 * t3 + c * t4, 5.0 * t4 + c * t5


ACTIVATIONS = table(
    identity, relu, leaky_relu, elu, tanh, sigmoid, softplus, silu, gelu, gelu_tanh, sin, softsign, mish
)  # fmt: skip

# The highest derivative that there is, and the highest order of a loss or an output: its gradients take the next one.
DERIVATIVES = 5
ORDERS = DERIVATIVES - 1

# Of what is not smooth: the highest order that is sound, and why not the next. The derivative of a jump is no number:
# from there on each formula would leave out what the jump gives.
JUMPS = {
    "relu": (1, "its first derivative jumps at 0"),
    "leaky_relu": (1, "its first derivative jumps at 0"),
    "elu": (2, "its second derivative jumps at 0, the first too unless alpha is 1"),
    "softplus": (2, "it jumps with all its derivatives where it goes over to the identity, at a threshold below 16.7"),
    "softsign": (2, "its second derivative jumps at 0"),
}
# Of softplus every jump is e^-threshold of what jumps: from here on no more than float32 rounds off, as by default.
UNSEEN_THRESHOLD = 16.7


def highest_order(activation: Formula) -> tuple[int, str]:
    """The highest order of derivatives that is sound with an activation, and in words why no higher one is, if so."""
    smooth = activation.name == "softplus" and activation.parameters[1] >= UNSEEN_THRESHOLD
    return (ORDERS, "") if smooth else JUMPS.get(activation.name, (ORDERS, ""))


def activation_jet(activation: Formula, z, order: int) -> tuple:
    """σ(z), σ'(z) … σ⁽ᵒʳᵈᵉʳ⁾(z) of a torch tensor of any shape and floating dtype, and nothing more."""
    function = ACTIVATIONS[activation.name].function
    if torch.compiler.is_compiling():  # a compiler drops by itself what is not used
        return function(z, *activation.parameters)[: 1 + order]
    return first(function, 1 + order)(z, *activation.parameters)


def is_curved(activation: Formula) -> bool:
    """Whether σ'' is more than the number 0."""
    return (bends if torch.compiler.is_compiling() else known_to_bend)(activation)


def bends(activation: Formula) -> bool:
    return not isinstance(activation_jet(activation, torch.zeros((), dtype=torch.float32, device="cpu"), 2)[2], float)


known_to_bend = lru_cache(maxsize=256)(bends)
