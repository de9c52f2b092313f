"""The losses. A pointwise one is a function of the residual r = prediction - target returning ρ(r) and ρ'(r).

Written like the activations (see there), and printed as C++ by the same generator.
"""

from ..errors import describe, one_of
from . import primitives as m
from .table import Formula, choose, table


def mse(r):
    return r * r, 2.0 * r


def l1(r):
    return m.abs(r), m.where(r > 0.0, 1.0, m.where(r < 0.0, -1.0, 0.0 * r))


def huber(r, delta=1.0):
    a = m.abs(r)
    inside = a < delta
    near = m.where(inside, r, 0.0)
    return m.where(inside, 0.5 * near * near, delta * (a - 0.5 * delta)), m.clamp(r, -delta, delta)


def log_cosh(r):
    # without overflow |r| + log(1 + e^(-2|r|)) - log 2; where that cancels, log(1 + sinh² r) / 2
    a = m.abs(r)
    near = a < 1.0
    t = m.expm1(-2.0 * m.where(near, r, 0.0))
    small = 0.5 * m.log1p(0.25 * t * t / (1.0 + t))
    return m.where(near, small, a + m.log1p(m.exp(-2.0 * a)) - 0.6931471805599453), m.tanh(r)


LOSSES = table(mse, l1, huber, log_cosh)


# Losses that couple all the numbers of a sample, as functions of five sums over them: rr of (a - t)², aa of a², at of
# a t and tt of t², where a is the prediction and t the target, and ww of their weights. Each returns ρ and its partial
# derivatives with respect to rr, aa and at; one whose last two are the number 0 asks for the target alone before it has
# slopes. The sums are in float64, where no product of float32 numbers is infinite or 0. A sample without any number
# that counts, of which ww is 0, counts as 0.


def relative_mse(rr, aa, at, tt, ww, eps=1e-8):
    # an eps that is 0 in float32, as a kernel may have it, does not make 0 / 0
    r = 1.0 / (tt + eps + 1e-300)
    return rr * r, r, 0.0, 0.0


def cosine(rr, aa, at, tt, ww, eps=1e-12):
    # √(aa tt + eps) by the roots of two factors, since of float64 numbers aa tt overflows where both sums are numbers;
    # the second factor is never so small that its inverse is infinite, as it would be of a = 0 and a long t
    large = m.where(tt > 1.0, tt, 1.0)
    small = m.where(tt > 1.0, 1.0, tt)
    some = aa * small + eps / large
    rest = m.where(some < 1e-300, 1e-300, some)
    length = m.sqrt(large)
    root = m.sqrt(rest)
    c = at / length / root
    return m.where(ww > 0.0, 1.0 - c, 0.0), 0.0, 0.5 * c * (small / rest), -1.0 / length / root


COUPLED = table(relative_mse, cosine, arguments=5)


# Losses of values alone, of what a head is a function of: a, the logarithm of a probability, or of bce its logit, and
# t, the probability that is the target, or its logarithm. Each returns ρ and its derivative with respect to a. A
# negative probability makes NaN of the first two.


def kl(a, t):
    some = t > 0.0
    rest = m.where(t < 0.0, m.sqrt(t), 0.0 * t)
    return m.where(some, t * (m.log(m.where(some, t, 1.0)) - a), rest), -t


def cross_entropy(a, t):
    return m.where(t > 0.0, -t * a, m.where(t < 0.0, m.sqrt(t), 0.0 * t)), -t


def bce(a, t):
    # log(1 + e^a) - t a; the branches meet at 0, where the lower one has the slope
    above = a > 0.0
    e = m.exp(m.where(above, -a, a))
    return m.where(above, a, 0.0) + m.log1p(e) - t * a, m.sigmoid(a) - t


def kl_of_log(a, t):
    p = m.exp(t)
    return m.where(p > 0.0, p * (t - a), 0.0 * p), -p


def cross_entropy_of_log(a, t):
    p = m.exp(t)
    return m.where(p > 0.0, -p * a, 0.0 * p), -p


def bce_of_log(a, t):
    # log(1 + e^a) - e^t a, whose terms do not cancel where both are near 0
    above = a > 0.0
    e = m.exp(m.where(above, -a, a))
    p = m.exp(t)
    near = m.where(above, -a * m.expm1(t), -a * p)
    return near + m.log1p(e), m.sigmoid(a) - p


LIKELIHOODS = table(kl, cross_entropy, bce, kl_of_log, cross_entropy_of_log, bce_of_log, arguments=2)
OF_LOG = "_of_log"
# Those that a user names, and the heads that give what they compare.
VALUE_LOSSES = {name: row for name, row in LIKELIHOODS.items() if not name.endswith(OF_LOG)}
HEADS_OF = {
    "kl": ("log_softmax", "softmax"), "cross_entropy": ("log_softmax", "softmax"), "bce": ("sigmoid", "log_sigmoid"),
}  # fmt: skip


def is_likelihood(loss: Formula | None) -> bool:
    return loss is not None and loss.name in LIKELIHOODS


def is_summed(loss: Formula | None) -> bool:
    """Whether a term is the sum over a sample's numbers, or one number of them, and not their mean."""
    return loss is not None and loss.name in COUPLED | LIKELIHOODS and not loss.name.startswith("bce")


def is_coupled(loss: Formula) -> bool:
    return loss.name in COUPLED


def residual(loss: Formula, r):
    """ρ(r) and ρ'(r) of a torch tensor of any shape and floating dtype."""
    return LOSSES[loss.name].function(r, *loss.parameters)


def coupled(loss: Formula, rr, aa, at, tt, ww):
    """ρ of the five sums."""
    return COUPLED[loss.name].function(rr, aa, at, tt, ww, *loss.parameters)[0]


def likelihood(loss: Formula, a, t):
    """ρ of torch tensors, of a loss of values alone."""
    return LIKELIHOODS[loss.name].function(a, t)[0]


def choose_loss(argument: str, choice: str | tuple | Formula) -> Formula:
    """A loss by name, with its parameters; those are widths, so they must be positive and finite."""
    of_values = argument == "value_loss"
    name = choice[0] if isinstance(choice, tuple) and choice else getattr(choice, "name", choice)
    if not of_values and one_of(name, VALUE_LOSSES):
        expected = f"a loss of residuals, {', '.join(LOSSES | COUPLED)}"
        raise ValueError(f"{argument}: expected {expected}, got {name!r}, which is a value_loss")
    loss = choose(LOSSES | COUPLED | (VALUE_LOSSES if of_values else {}), argument, choice)
    if not all(0 < parameter < float("inf") for parameter in loss.parameters):
        raise ValueError(f"{argument}: expected finite parameters > 0, got {describe(choice)}")
    return loss
