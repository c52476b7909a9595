"""The names that Python and the kernels share, and their meanings: activations, heads, the dtype of the arithmetic."""

import torch
from torch.nn import functional as F

# Activations of NADE, DeepNADE, OffsetNADE and ARMLP, whose kernels recompute them in the gradient.
ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}
# Activations of masked layers and MADE.
MLP_ACTIVATIONS = {
    **ACTIVATIONS,
    "elu": F.elu,
    "softplus": F.softplus,
    "silu": F.silu,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
}
# The index of a head is its number in the kernels.
HEADS = ("bernoulli", "categorical", "gaussian_mixture", "logistic_mixture")


def compute_dtype(storage: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic, head parameters and log-probabilities: float64 for float64 storage, else float32."""
    return torch.float64 if storage == torch.float64 else torch.float32
