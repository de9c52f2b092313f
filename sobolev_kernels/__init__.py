"""Fused kernels for Sobolev training: fitting values and derivatives of a target function in one pass.

Glossary, the same in every language: N samples, D input features, H width, O output features, L linear layers,
P directions on the input side, R cotangents on the output side, K order of the derivative.
"""

from .directions import Directions
from .errors import NotProvided
from .explain import explain
from .functional import SobolevTerms, jvp, sobolev_loss
from .math.activations import ACTIVATIONS
from .math.losses import LOSSES
from .module import SobolevLoss
from .student import MLP, Sine
from .targets import Targets

__version__ = "0.1.0"
__all__ = [
    "ACTIVATIONS",
    "LOSSES",
    "MLP",
    "Directions",
    "NotProvided",
    "Sine",
    "SobolevLoss",
    "SobolevTerms",
    "Targets",
    "explain",
    "jvp",
    "sobolev_loss",
]
