"""Heads of all kinds side by side, for the tests of the ops."""

import torch
from torch import Tensor


def mixed_heads(variables: int, components: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """head_kinds (D, 2), parameters (D) and inputs (D) of variables of any kinds, of up to ``components`` components or
    one category more."""
    kinds = torch.randperm(variables) % 4
    own = torch.randint(1, components + 1, (variables,))
    counts = torch.stack([torch.ones_like(own), own + 1, 3 * own, 3 * own])[kinds, torch.arange(variables)]
    inputs = torch.where(kinds == 1, counts, 1)
    return torch.stack([kinds, torch.where(kinds == 3, 7, 0)], 1), counts, inputs


def mixed_values(head_kinds: Tensor, counts: Tensor, batch: int) -> Tensor:
    """(B, D) float64, in the support of each variable's head."""
    uniform = torch.rand(batch, len(counts), dtype=torch.float64)
    columns = [uniform.round(), (uniform * counts).floor(), 4 * uniform - 2, 2 * (uniform * 7).floor() / 6 - 1]
    return torch.stack(columns)[head_kinds[:, 0], :, torch.arange(len(counts))].T.contiguous()


def offsets_of(counts: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
