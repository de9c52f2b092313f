"""Fused kernels for Sobolev training: fitting values and derivatives of a target function in one pass.

Glossary, the same in every language: N samples, D input features, H width, O output features, L linear layers,
P directions on the input side, R cotangents on the output side.
"""

from . import teaching  # noqa: F401 (which gives Targets their from_teacher)
from .dataset import SobolevDataset
from .derivatives import hvp, jet, jvp, laplacian, vjp
from .diagnostics.balance import term_gradients
from .diagnostics.check import check_targets
from .diagnostics.errors import derivative_error
from .directions import Cotangents, Directions
from .errors import NotProvided, SobolevWarning
from .explain import explain
from .loss import SobolevLoss, sobolev_loss
from .math.activations import ACTIVATIONS
from .math.losses import COUPLED, LOSSES
from .modules import MLP, Sine
from .partials.bilaplacian import bilaplacian
from .partials.dense import divergence, hessian
from .partials.evaluate import partials
from .partials.names import Fields
from .partials.residual import Residual
from .partials.residual_loss import ResidualTerms, residual_loss, residual_scales
from .partials.transformed import Transformed
from .scaled import Scaled
from .scaler import Scaler
from .targets import Targets
from .terms import JetTerms, SobolevTerms
from .training.fit import fit
from .training.history import History
from .training.points import Points
from .training.weighting import GradNorm, Uncertainty

__version__ = "0.1.0"
__all__ = [
    "ACTIVATIONS",
    "COUPLED",
    "LOSSES",
    "MLP",
    "Cotangents",
    "Directions",
    "Fields",
    "GradNorm",
    "History",
    "JetTerms",
    "NotProvided",
    "Points",
    "Residual",
    "ResidualTerms",
    "Scaled",
    "Scaler",
    "Sine",
    "SobolevDataset",
    "SobolevLoss",
    "SobolevTerms",
    "SobolevWarning",
    "Targets",
    "Transformed",
    "Uncertainty",
    "bilaplacian",
    "check_targets",
    "derivative_error",
    "divergence",
    "explain",
    "fit",
    "hessian",
    "hvp",
    "jet",
    "jvp",
    "laplacian",
    "partials",
    "residual_loss",
    "residual_scales",
    "sobolev_loss",
    "term_gradients",
    "vjp",
]
