"""The names that every floor shares, and what they stand for: activations, heads, the dtype of the arithmetic."""

import torch
from torch.nn import functional as F

# Those of NADE, DeepNADE, OffsetNADE and ARMLP, whose kernels recompute them in the gradient.
ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}
# Those of masked layers and MADE.
MLP_ACTIVATIONS = {
    **ACTIVATIONS,
    "elu": F.elu,
    "softplus": F.softplus,
    "silu": F.silu,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
}
# In the order of their numbers in the kernels.
HEADS = ("bernoulli", "categorical", "gaussian_mixture", "logistic_mixture")


def compute_dtype(storage: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic, of parameters and of log-probabilities: float64 for float64, else float32."""
    return torch.float64 if storage == torch.float64 else torch.float32
