"""Fast layers and kernels for autoregressive generative models in PyTorch."""

from . import functional, heads, masks, models, nn, orderings, reference, training
from ._info import explain, info
from ._version import __version__
from .dependence import Dependence, check_autoregressive
from .freezing import frozen
from .masks import Mask
from .tasks.comparison import compare

__all__ = [
    "Dependence",
    "Mask",
    "__version__",
    "check_autoregressive",
    "compare",
    "explain",
    "frozen",
    "functional",
    "heads",
    "info",
    "masks",
    "models",
    "nn",
    "orderings",
    "reference",
    "training",
]
