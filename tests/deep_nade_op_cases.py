"""Inputs of deep_nade_sample."""

import itertools
from dataclasses import dataclass, replace

import torch
from mixed_cases import mixed_heads, mixed_values, offsets_of
from torch import Tensor

from ar_fast import reference


@dataclass
class Case:
    """Weights of the op, its structure, and values of its variables."""

    bias: Tensor
    tensors: dict
    structure: dict
    counts: Tensor
    inputs: Tensor

    @property
    def variables(self) -> int:
        return len(self.counts)

    @property
    def compute(self) -> torch.dtype:
        return reference.compute_dtype(self.bias.dtype)

    def upcast(self) -> "Case":
        def wide(value):
            return [wide(each) for each in value] if isinstance(value, list) else value.double()

        return replace(self, bias=self.bias.double(), tensors={k: wide(v) for k, v in self.tensors.items()})

    def given(self, batch: int) -> Tensor:
        """(B, D) in the compute dtype, in the support of each head."""
        head, kinds = self.structure["head"], self.structure["head_kinds"]
        if kinds is None:
            number = ["bernoulli", "categorical", "gaussian_mixture", "logistic_mixture"].index(head)
            levels = self.structure["levels"] if number == 3 else 0
            kinds = torch.tensor([[number, levels]]).expand(self.variables, 2)
        return mixed_values(kinds.cpu(), self.counts.cpu(), batch).to(self.bias.device, self.compute)


def deep_case(
    variables=9, units=(21, 13), *, head="bernoulli", parameters=1, ragged=False, activation="tanh", ordered=True,
    dtype=torch.float32, device="cpu",
) -> Case:  # fmt: skip
    kinds, levels = None, 0
    counts = torch.full((variables,), parameters)
    if ragged:
        counts = torch.arange(variables) % 3 + 2 if head == "categorical" else 3 * (torch.arange(variables) % 3 + 1)
    inputs = counts if head == "categorical" else torch.ones_like(counts)
    if head == "per_variable":
        kinds, counts, inputs = mixed_heads(variables, parameters)
    elif head == "logistic_mixture":
        levels = 7
    offsets = ragged or head == "per_variable"

    def weight(rows, columns, scale=1.5):
        return (scale * torch.randn(rows, columns) / columns**0.5).to(device, dtype)

    def bias(rows):
        return (0.3 * torch.randn(rows)).to(device, dtype)

    tensors = {
        "in_weight": (0.7 * torch.randn(int(inputs.sum()), units[0])).to(device, dtype),
        "mask_weight": (0.3 * torch.randn(variables, units[0])).to(device, dtype),
        "weights": [weight(above, below) for below, above in itertools.pairwise(units)],
        "biases": [bias(above) for above in units[1:]],
        "out_weight": weight(int(counts.sum()), units[-1]),
        "out_bias": bias(int(counts.sum())),
    }
    structure = {
        "order": torch.randperm(variables).to(device) if ordered else None,
        "in_offsets": offsets_of(inputs).to(device) if offsets and (head in ("categorical", "per_variable")) else None,
        "out_offsets": offsets_of(counts).to(device) if offsets else None,
        "activation": activation,
        "head": head,
        "levels": levels,
        "head_kinds": None if kinds is None else kinds.to(device),
    }
    return Case(bias(units[0]), tensors, structure, counts, inputs)
