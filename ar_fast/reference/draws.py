"""One draw of a variable, from the uniform numbers of a counter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .heads import log_prob_of, mixture_parameters
from .transforms import transform_inverse


def philox_uniform(seed: int, sample: Tensor, variable: Tensor, slot: Tensor | int = 0) -> Tensor:
    """Uniform numbers in (0, 1), float64, of Philox4x32-10 with key ``seed`` and counter (sample, variable, slot).

    ``sample``, ``variable`` and ``slot`` are int64 and broadcast. The numbers equal those of csrc/kernels/philox.h, bit
    for bit. Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    word = 0xFFFFFFFF
    key0, key1 = seed & word, (seed >> 32) & word
    slot = torch.as_tensor(slot, device=sample.device)
    sample, variable, slot = torch.broadcast_tensors(sample, variable, slot)
    c0, c1, c2, c3 = sample & word, (sample >> 32) & word, variable & word, slot
    for _ in range(10):
        # int64 products wrap modulo 2^64, which keeps all 64 bits of the unsigned product.
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            ((product1 >> 32) & word) ^ c1 ^ key0,
            product1 & word,
            ((product0 >> 32) & word) ^ c3 ^ key1,
            product0 & word,
        )
        key0, key1 = (key0 + 0x9E3779B9) & word, (key1 + 0xBB67AE85) & word
    return (((c0 << 20) | (c1 >> 12)).double() + 0.5) * 2.0**-52


def likeliest(logits: Tensor, weights: Tensor, top_k: int, top_p: float) -> Tensor:
    """Which categories a draw may choose, a bool for each: those with the greatest logits, ties in favour of the first.

    top_k > 0 keeps this many. Of those, top_p < 1 keeps the fewest whose total share of their weights reaches top_p,
    and at least one.
    """
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    sorted_weights = weights.gather(-1, order)
    if top_k > 0:
        sorted_weights = sorted_weights * (torch.arange(logits.shape[-1], device=logits.device) < top_k)
    before = sorted_weights.cumsum(-1) - sorted_weights
    kept = before < top_p * sorted_weights.sum(-1, keepdim=True) if top_p < 1 else torch.ones_like(before).bool()
    kept[..., 0] = True
    if top_k > 0:
        kept[..., top_k:] = False
    return torch.zeros_like(kept).scatter(-1, order, kept)


def _draw_category(logits: Tensor, uniform: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """The first category whose running sum of probabilities exceeds the uniform number."""
    weights = (logits / temperature - logits.amax(-1, keepdim=True) / temperature).exp().double()
    if top_k > 0 or top_p < 1:
        weights = weights * likeliest(logits, weights, top_k, top_p)
    weights = weights.cumsum(-1)
    return (weights > uniform.unsqueeze(-1) * weights[..., -1:]).int().argmax(-1)


def head_draw(
    parameters: Tensor,
    seed: int,
    sample: Tensor,
    variable: Tensor,
    head: str,
    levels: int,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """One draw of a variable from parameters (..., K) and the uniform numbers of its counters; csrc/kernels/head.h."""
    slots = {"bernoulli": 1, "categorical": 1, "logistic_mixture": 2, "gaussian_mixture": 3}[head]
    slot = torch.arange(slots, device=sample.device).unflatten(0, (-1, *[1] * sample.dim()))
    uniform = philox_uniform(seed, sample, variable, slot)
    if head == "bernoulli":
        return (uniform[0] < torch.sigmoid(parameters.squeeze(-1) / temperature).double()).to(parameters.dtype)
    if head == "categorical":
        return _draw_category(parameters, uniform[0], temperature, top_k, top_p).to(parameters.dtype)
    logits, means, log_scales = mixture_parameters(parameters)
    component = _draw_category(logits, uniform[0], temperature).unsqueeze(-1)
    mean = means.gather(-1, component).squeeze(-1).double()
    scale = log_scales.gather(-1, component).squeeze(-1).double().exp()
    if head == "gaussian_mixture":
        normal = (-2 * uniform[1].log()).sqrt() * (2 * math.pi * uniform[2]).cos()
        return (mean + scale * temperature**0.5 * normal).to(parameters.dtype)
    value = mean + scale * temperature * (uniform[1].log() - (-uniform[1]).log1p())
    level = ((value + 1) / 2 * (levels - 1)).round().clamp(0, levels - 1)
    return (2 * level / (levels - 1) - 1).to(parameters.dtype)


def draw(
    parameters: Tensor,
    variable: Tensor,
    seed: int,
    first_index: int,
    temperature: float,
    given: Tensor | None,
    known: Tensor | None,
    head: str = "bernoulli",
    levels: int = 0,
    *,
    first_variable: int = 0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Draws one variable of every row: its value (B,), and its log-probability (B,) float64, 0 where known.

    ``first_variable`` is the number that variable 0 has in the random counter.
    """
    if parameters.shape[-1] == 0 and given is not None:  # a variable without parameters is known
        return given.index_select(1, variable.view(1))[:, 0], parameters.new_zeros(len(parameters), dtype=torch.float64)
    sample = torch.arange(parameters.shape[0], device=parameters.device) + first_index
    counter = variable + first_variable
    value = head_draw(parameters, seed, sample, counter, head, levels, temperature, top_k, top_p)
    if given is None or known is None:
        return value, log_prob_of(parameters, value, head, levels).double()
    is_known = known.index_select(1, variable.view(1))[:, 0].bool()
    log_prob = log_prob_of(parameters, value, head, levels).double().masked_fill(is_known, 0.0)
    return torch.where(is_known, given.index_select(1, variable.view(1))[:, 0].to(value.dtype), value), log_prob


def transformed(
    parameters: Tensor,
    variable: Tensor,
    given: Tensor,
    known: Tensor | None,
    transform: str,
    constants: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """The value of one variable (B,) whose transform is applied to the number in given, and log dx/du (B,) float64.

    A value that is known is the number itself; its term is 0.
    """
    noise = given.index_select(1, variable.view(1))[:, 0]
    value, log_derivative = transform_inverse(parameters, noise, transform, constants)
    if known is None:
        return value, log_derivative.double()
    is_known = known.index_select(1, variable.view(1))[:, 0]
    return torch.where(is_known, noise, value), log_derivative.double().masked_fill(is_known, 0.0)
