"""Fast layers and kernels for autoregressive generative models in PyTorch."""

from . import functional, heads, masks, models, nn, orderings, reference
from ._library import explain, info
from ._version import __version__
from .masks import Mask

__all__ = [
    "Mask",
    "__version__",
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
