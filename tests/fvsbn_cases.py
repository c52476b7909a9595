"""Inputs of fvsbn_sample, and of masked_mlp_sample with a weight by input."""

from dataclasses import dataclass

import torch
from mixed_cases import mixed_heads, mixed_values, offsets_of
from torch import Tensor

from ar_fast import reference


@dataclass
class FvsbnCase:
    variables: int
    bias: Tensor
    weight: Tensor
    order: Tensor | None
    offsets: Tensor | None
    head: str
    levels: int
    head_kinds: Tensor | None
    in_offsets: Tensor | None
    counts: Tensor  # parameters of each place

    def given(self, batch):
        """Values of the head's support, by variable."""
        device, dtype = self.weight.device, reference.compute_dtype(self.weight.dtype)
        by_variable = torch.empty_like(self.counts)
        by_variable[torch.arange(self.variables) if self.order is None else self.order.cpu()] = self.counts.flip(0)
        if self.head == "per_variable":
            by_place = mixed_values(self.head_kinds.cpu(), self.counts, batch)
            values = torch.empty_like(by_place)
            values[:, torch.arange(self.variables) if self.order is None else self.order.cpu()] = by_place.flip(1)
            return values.to(device, dtype)
        values = {
            "bernoulli": lambda: torch.randint(0, 2, (batch, self.variables)),
            "categorical": lambda: (torch.rand(batch, self.variables) * by_variable).floor(),
            "gaussian_mixture": lambda: torch.randn(batch, self.variables),
            "logistic_mixture": lambda: 2 * torch.randint(0, 7, (batch, self.variables)) / 6 - 1,
        }[self.head]()
        return values.to(device, dtype)


def fvsbn_case(
    variables, *, dtype=torch.float32, device="cpu", head="bernoulli", parameters=1, ragged=False, ordered=True
):
    """Weights of an op's call, NaN where they are masked. ``parameters`` counts categories or components."""
    counts = torch.randint(1, parameters + 1, (variables,)) if ragged else torch.full((variables,), parameters)
    head_kinds = in_offsets = None
    if head == "per_variable":
        (head_kinds, counts, inputs), ragged = mixed_heads(variables, parameters), True
        in_offsets = offsets_of(inputs)
    elif head.endswith("mixture"):
        counts = 3 * counts
    ends = counts.cumsum(0)
    starts = ends - counts
    extents = starts.repeat_interleave(counts) if head == "categorical" else starts
    if in_offsets is not None:
        extents = starts.repeat_interleave(inputs)
    # Real draws feed back: with small weights rounding does not grow from one to the next.
    size = 0.1 if head.endswith("mixture") or head == "per_variable" else 2.0
    weight = torch.randn(len(extents), int(ends[-1]), dtype=torch.float64) * size / variables**0.5
    weight = torch.where(torch.arange(weight.shape[1]) < extents[:, None], weight, torch.nan)
    return FvsbnCase(
        variables,
        torch.randn(weight.shape[1], dtype=torch.float64).to(device, reference.compute_dtype(dtype)),
        weight.to(device, dtype),
        torch.randperm(variables).to(device) if ordered else None,
        torch.cat([torch.zeros(1, dtype=torch.long), ends]).to(device) if ragged else None,
        head,
        7 if head == "logistic_mixture" else 0,
        None if head_kinds is None else head_kinds.to(device),
        None if in_offsets is None else in_offsets.to(device),
        counts,
    )


def by_position(case):
    """What masked_mlp_sample takes of a case: by position, where the case has it by place."""
    out_offsets = None if case.offsets is None else offsets_of(case.counts.flip(0)).to(case.weight.device)
    in_offsets = out_offsets if case.head == "categorical" else None
    if case.in_offsets is not None:
        in_offsets = offsets_of(case.in_offsets.diff().flip(0))
    kinds = None if case.head_kinds is None else case.head_kinds.flip(0)
    bias = torch.cat(case.bias.split(case.counts.tolist())[::-1])
    structure = {"variables": case.variables, "order": case.order, "head": case.head, "levels": case.levels}
    return [case.weight], [bias], structure | {
        "in_offsets": in_offsets, "out_offsets": out_offsets, "head_kinds": kinds, "by_input": True,
    }  # fmt: skip
