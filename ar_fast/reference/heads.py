"""The log-likelihood of each head, which defines what its parameters mean."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def compute_dtype(storage: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic, head parameters and log-probabilities: float64 for float64 storage, else float32."""
    return torch.float64 if storage == torch.float64 else torch.float32


# Heads: what a variable's parameters (..., K) mean. Log-scales are cut off below this value, with no gradient there.
# Distances in units of the scale are cut off where their square would overflow.
MINIMUM_LOG_SCALE = -7.0
LARGEST_DISTANCE = 1e15
HEADS = ("bernoulli", "categorical", "gaussian_mixture", "logistic_mixture")


def bounds_of(offsets: Tensor | None, variables: int, rows: int) -> list[int]:
    """The first row of each variable, and at the end the number of all rows."""
    return list(range(0, rows + 1, rows // variables)) if offsets is None else offsets.tolist()


def head_of(head: str, levels: int, head_kinds: Tensor | None, index: int) -> tuple[str, int]:
    """The head of one variable and its levels; head_kinds (D, 2) holds them, with heads as numbers of HEADS."""
    if head_kinds is None:
        return head, levels
    kind, levels = head_kinds[index].tolist()
    return HEADS[kind], levels


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)). torch takes x itself from 20 on, which is off by 2e-9: too much for float64."""
    return F.softplus(x, threshold=40)


def log_sigmoid(x: Tensor) -> Tensor:
    """-log(1 + exp(-x)). ONNX would have log(sigmoid(x)) of torch's function, which is -inf for an x below -88."""
    return -softplus(-x)


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    return x.to(logits.dtype) * logits - softplus(logits)


def chosen(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which of ``count`` rows each category chooses, and its factor: what is no category is NaN times the first row."""
    inside = (x >= 0) & (x < count)
    if x.is_floating_point():
        inside = inside & (x == x.floor())
    return torch.where(inside, x, 0).long(), torch.where(inside, 1.0, torch.nan)


def categorical_log_prob(parameters: Tensor, x: Tensor) -> Tensor:
    row, factor = chosen(x, parameters.shape[-1])
    own = parameters.log_softmax(-1).gather(-1, row.unsqueeze(-1)).squeeze(-1)
    return own * factor.to(parameters.dtype)


def mixture_parameters(parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(..., 3 K) -> logits, means and log-scales, (..., K) each."""
    logits, means, log_scales = parameters.unflatten(-1, (3, -1)).unbind(-2)
    return logits, means, log_scales.clamp(min=MINIMUM_LOG_SCALE)


def gaussian_mixture_log_prob(parameters: Tensor, x: Tensor) -> Tensor:
    logits, means, log_scales = mixture_parameters(parameters)
    z = ((x.unsqueeze(-1) - means) * (-log_scales).exp()).clamp(-LARGEST_DISTANCE, LARGEST_DISTANCE)
    log_density = -0.5 * z * z - log_scales - 0.5 * math.log(2 * math.pi)
    return (logits.log_softmax(-1) + log_density).logsumexp(-1)


def logistic_mixture_log_prob(parameters: Tensor, x: Tensor, levels: int) -> Tensor:
    """The probability of the bin around x, half a step to each side; F(a) - F(b) = F(a) F(-b) (1 - e^(b-a))."""
    logits, means, log_scales = mixture_parameters(parameters)
    half, x = 1 / (levels - 1), x.unsqueeze(-1)
    inverse = (-log_scales).exp()
    a = ((x + half - means) * inverse).clamp(-LARGEST_DISTANCE, LARGEST_DISTANCE)
    b = ((x - half - means) * inverse).clamp(-LARGEST_DISTANCE, LARGEST_DISTANCE)
    width = 2 * half * inverse
    log_width = math.log(2 * half) - log_scales
    log_mass = torch.where(width < 1e-4, log_width - width / 2, (-torch.expm1(-width.clamp(min=1e-4))).log())
    inside = log_sigmoid(a) + log_sigmoid(-b) + log_mass
    log_probability = torch.where(x < half - 1, log_sigmoid(a), torch.where(x > 1 - half, log_sigmoid(-b), inside))
    return (logits.log_softmax(-1) + log_probability).logsumexp(-1)


def log_prob_of(parameters: Tensor, x: Tensor, head: str, levels: int) -> Tensor:
    """parameters (..., K), x (...)."""
    if head == "bernoulli":
        return bernoulli_log_prob(parameters.squeeze(-1), x)
    if head == "categorical":
        return categorical_log_prob(parameters, x)
    if head == "gaussian_mixture":
        return gaussian_mixture_log_prob(parameters, x)
    return logistic_mixture_log_prob(parameters, x, levels)


def head_log_prob(
    parameters: Tensor,
    x: Tensor,
    offsets: Tensor | None,
    head: str,
    levels: int,
    head_kinds: Tensor | None = None,
) -> Tensor:
    """log p of each variable, (B, D). See ``functional.head_log_prob``."""
    x = x.to(parameters.dtype)
    if offsets is None and head_kinds is None:
        return log_prob_of(parameters.unflatten(1, (x.shape[1], -1)), x, head, levels)
    bounds = bounds_of(offsets, x.shape[1], parameters.shape[1])
    own = parameters.tensor_split(bounds[1:-1], dim=1)
    terms = [log_prob_of(part, x[:, i], *head_of(head, levels, head_kinds, i)) for i, part in enumerate(own)]
    return torch.stack(terms, 1)
