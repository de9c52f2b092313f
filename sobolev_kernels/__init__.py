"""Fused kernels for Sobolev training: fitting values and derivatives of a target function in one pass.

Glossary, the same in every language: N samples, D input features, H width, O output features, L linear layers,
P directions on the input side, R cotangents on the output side.
"""

from . import teaching  # noqa: F401 (which gives Targets their from_teacher)
from .dataset import SobolevDataset
from .derivatives import hvp, jet, jvp, laplacian, vjp
from .directions import Cotangents, Directions
from .errors import NotProvided, SobolevWarning
from .explain import explain
from .loss import SobolevLoss, sobolev_loss
from .math.activations import ACTIVATIONS
from .math.losses import COUPLED, LOSSES
from .modules import MLP, Sine
from .targets import Targets
from .terms import SobolevTerms

__version__ = "0.1.0"
__all__ = [
    "ACTIVATIONS",
    "COUPLED",
    "LOSSES",
    "MLP",
    "Cotangents",
    "Directions",
    "NotProvided",
    "Sine",
    "SobolevDataset",
    "SobolevLoss",
    "SobolevTerms",
    "SobolevWarning",
    "Targets",
    "explain",
    "hvp",
    "jet",
    "jvp",
    "laplacian",
    "sobolev_loss",
    "vjp",
]
