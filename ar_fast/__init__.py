"""Fast layers and kernels for autoregressive generative models in PyTorch."""

from . import flows, functional, heads, interop, masks, models, nn, orderings, reference, training
from ._info import explain, info
from ._version import __version__
from .compression import compress, decompress
from .dependence import Dependence, check_autoregressive
from .freezing import frozen
from .interop import accelerate, accelerated, acceleration_report, restore
from .masks import Mask
from .tasks.comparison import compare
from .tasks.completion import Completion, complete

__all__ = [
    "Completion",
    "Dependence",
    "Mask",
    "__version__",
    "accelerate",
    "accelerated",
    "acceleration_report",
    "check_autoregressive",
    "compare",
    "complete",
    "compress",
    "decompress",
    "explain",
    "flows",
    "frozen",
    "functional",
    "heads",
    "info",
    "interop",
    "masks",
    "models",
    "nn",
    "orderings",
    "reference",
    "restore",
    "training",
]
