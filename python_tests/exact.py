"""The activations in high precision: σ(z) and its derivatives at one number, as Taylor series (mpmath).

None shares a formula with `sobolev_kernels/math/activations.py`: they are the definitions, with torch's convention
where a derivative jumps.
"""

from __future__ import annotations

import mpmath

DIGITS, ORDER = 60, 6
mpmath.mp.dps = DIGITS
mpf = mpmath.mpf


class Series:
    """Taylor coefficients c_0 … c_ORDER about a number."""

    def __init__(self, coefficients):
        self.c = [mpf(c) for c in coefficients]

    @staticmethod
    def of(a):
        return a if isinstance(a, Series) else Series([a] + [0] * ORDER)

    @classmethod
    def at(cls, z):
        return cls([z, 1] + [0] * (ORDER - 1))

    def __add__(self, other):
        return Series(a + b for a, b in zip(self.c, Series.of(other).c, strict=True))

    def __neg__(self):
        return Series(-a for a in self.c)

    def __sub__(self, other):
        return self + -Series.of(other)

    def __mul__(self, other):
        a, b = self.c, Series.of(other).c
        return Series(sum((a[i] * b[k - i] for i in range(k + 1)), mpf(0)) for k in range(ORDER + 1))

    def __truediv__(self, other):
        b, quotient = Series.of(other).c, []
        for k in range(ORDER + 1):
            rest = sum((quotient[i] * b[k - i] for i in range(k)), mpf(0))
            quotient.append((self.c[k] - rest) / b[0])
        return Series(quotient)

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other):
        return Series.of(other) - self

    def __rtruediv__(self, other):
        return Series.of(other) / self

    def derivatives(self):
        return [c * mpmath.factorial(k) for k, c in enumerate(self.c)]


def after(u: Series, value, slope: Series) -> Series:
    """The series of f(u) from f at u's number and from the series of f'(u)."""
    du = [k * c for k, c in enumerate(u.c)][1:]
    rate = [sum((slope.c[i] * du[k - i] for i in range(k + 1)), mpf(0)) for k in range(ORDER)]
    return Series([value] + [r / (k + 1) for k, r in enumerate(rate)])


def exp(u: Series) -> Series:
    e = [mpmath.exp(u.c[0])]
    for k in range(1, ORDER + 1):
        e.append(sum((j * u.c[j] * e[k - j] for j in range(1, k + 1)), mpf(0)) / k)
    return Series(e)


def sigmoid(u: Series) -> Series:
    # of the exponential that is below 1: the other one has no place in 60 digits beside 1
    return 1 / (1 + exp(-u)) if u.c[0] > 0 else exp(u) / (1 + exp(u))


def relu(z, slope=0):
    return z if z.c[0] > 0 else slope * z


def line(u: Series, of: Series) -> Series:
    """At a join where torch has the slope from one side and the second derivative, 0, from the other."""
    return of.c[0] + of.c[1] / u.c[1] * (u - u.c[0])


def elu(z, alpha=1.0):
    # e^z - 1 to all digits at the number itself
    below = alpha * after(z, mpmath.expm1(z.c[0]), exp(z))
    return z if z.c[0] > 0 else below if z.c[0] < 0 else line(z, below)


def softplus(z, beta=1.0, threshold=20.0):
    u = beta * z
    if u.c[0] > threshold:
        return z
    below = after(u, mpmath.log1p(mpmath.exp(u.c[0])), sigmoid(u)) / beta
    return below if u.c[0] < threshold else line(z, below)


def gelu(z):
    density = exp(z * z / -2) / mpmath.sqrt(2 * mpmath.pi)
    number = z.c[0]
    below = mpf(number > 0) if abs(number) > 1000 else mpmath.erfc(-number / mpmath.sqrt(2)) / 2
    return z * after(z, below, density)


def gelu_tanh(z):
    return z * sigmoid(2 * mpmath.sqrt(2 / mpmath.pi) * (z + mpf("0.044715") * z * z * z))


def sin(z, omega=1.0):
    u = (omega * z).c
    turns = [mpmath.sin(u[0]), mpmath.cos(u[0]), -mpmath.sin(u[0]), -mpmath.cos(u[0])]
    return Series(turns[k % 4] * mpf(omega) ** k / mpmath.factorial(k) for k in range(ORDER + 1))


def softsign(z):
    # torch differentiates |z| as sign(z), and sign(0) as 0
    return z / (1 + z) if z.c[0] > 0 else z / (1 - z) if z.c[0] < 0 else z


def mish(z):
    e = exp(z if z.c[0] < 0 else -z)
    top = e * (e + 2) if z.c[0] < 0 else 1 + 2 * e
    return z * top / (top + 2 * (1 if z.c[0] < 0 else e * e))


EXACT = {
    "identity": lambda z: z,
    "relu": relu,
    "leaky_relu": lambda z, slope: relu(z, mpf(slope)),
    "elu": lambda z, alpha: elu(z, mpf(alpha)),
    "tanh": lambda z: 2 * sigmoid(2 * z) - 1,
    "sigmoid": sigmoid,
    "softplus": lambda z, beta, threshold: softplus(z, mpf(beta), threshold),
    "silu": lambda z: z * sigmoid(z),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "sin": lambda z, omega: sin(z, mpf(omega)),
    "softsign": softsign,
    "mish": mish,
}


def exact(name: str, parameters: tuple[float, ...], z: float) -> list[float]:
    """σ(z) and its derivatives up to ORDER, finite z."""
    return [float(d) for d in EXACT[name](Series.at(z), *parameters).derivatives()]
