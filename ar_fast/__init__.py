"""Fast layers and kernels for autoregressive generative models in PyTorch."""

from . import functional, heads, masks, models, nn, orderings, reference
from ._library import explain, info
from ._version import __version__
from .autoregressive import Dependence, check_autoregressive
from .masks import Mask

__all__ = [
    "Dependence",
    "Mask",
    "__version__",
    "check_autoregressive",
    "explain",
    "functional",
    "heads",
    "info",
    "masks",
    "models",
    "nn",
    "orderings",
    "reference",
]
