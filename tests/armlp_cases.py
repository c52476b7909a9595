"""Inputs of armlp_sample."""

import itertools
from dataclasses import dataclass

import torch
from mixed_cases import mixed_heads, mixed_values, offsets_of
from torch import Tensor

from ar_fast import reference


@dataclass
class ArmlpCase:
    weights: dict[str, Tensor]
    order: Tensor | None
    offsets: Tensor | None
    activation: str
    head: str
    levels: int
    head_kinds: Tensor | None
    in_offsets: Tensor | None
    counts: Tensor  # parameters of each position

    @property
    def variables(self) -> int:
        return len(self.counts)

    @property
    def compute(self) -> torch.dtype:
        return reference.compute_dtype(self.weights["in_weight"].dtype)

    def given(self, batch):
        """Values of the head's support, by variable."""
        by_variable = torch.empty_like(self.counts)
        by_variable[torch.arange(self.variables) if self.order is None else self.order.cpu()] = self.counts
        if self.head == "per_variable":
            by_position = mixed_values(self.head_kinds.cpu(), self.counts, batch)
            values = torch.empty_like(by_position)
            values[:, torch.arange(self.variables) if self.order is None else self.order.cpu()] = by_position
            return values.to(self.weights["in_weight"].device, self.compute)
        values = {
            "bernoulli": lambda: torch.randint(0, 2, (batch, self.variables)),
            "categorical": lambda: (torch.rand(batch, self.variables) * by_variable).floor(),
            "gaussian_mixture": lambda: torch.randn(batch, self.variables),
            "logistic_mixture": lambda: 2 * torch.randint(0, 7, (batch, self.variables)) / 6 - 1,
        }[self.head]()
        return values.to(self.weights["in_weight"].device, self.compute)


def armlp_case(
    variables, hidden, *, dtype=torch.float32, device="cpu", head="bernoulli", parameters=1, ragged=False,
    ordered=True, activation="sigmoid", context_rows=0,
):  # fmt: skip
    """Weights of an op's call, NaN where they are masked. ``parameters`` counts categories or components; with
    context_rows in_bias is by row."""
    counts = torch.randint(1, parameters + 1, (variables,)) if ragged else torch.full((variables,), parameters)
    head_kinds = in_offsets = None
    if head == "per_variable":
        (head_kinds, counts, inputs), ragged = mixed_heads(variables, parameters), True
        in_offsets = offsets_of(inputs)
    elif head.endswith("mixture"):
        counts = 3 * counts
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    first = offsets if head == "categorical" else torch.arange(variables + 1)  # input row of each position
    first = first if in_offsets is None else in_offsets
    # Real draws feed back: with small weights rounding does not grow from one to the next.
    size = 0.1 if head.endswith("mixture") or head == "per_variable" else 2.0
    blocks = []
    for begin in range(0, variables, 8):
        networks = torch.arange(begin, min(begin + 8, variables))
        block = torch.randn(int(first[networks[-1]]), len(networks), hidden, dtype=torch.float64)
        seen = torch.arange(len(block))[:, None] < first[networks]
        blocks.append(torch.where(seen[..., None], block * size / variables**0.5, torch.nan).flatten(0, 1))
    weights = {
        "in_weight": torch.cat(blocks).to(device, dtype),
        "block_starts": torch.tensor([0, *itertools.accumulate(map(len, blocks))], device=device),
        "in_bias": torch.randn(*([context_rows] if context_rows else []), variables, hidden).to(device, dtype),
        "out_weight": (torch.randn(int(offsets[-1]), hidden) * size / hidden**0.5).to(device, dtype),
        "out_bias": torch.randn(int(offsets[-1])).to(device, dtype),
    }
    return ArmlpCase(
        weights,
        torch.randperm(variables).to(device) if ordered else None,
        offsets.to(device) if ragged else None,
        activation,
        head,
        7 if head == "logistic_mixture" else 0,
        None if head_kinds is None else head_kinds.to(device),
        None if in_offsets is None else in_offsets.to(device),
        counts,
    )
