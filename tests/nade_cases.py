"""Inputs of the NADE ops: one generator feeds the comparison with the reference, gradcheck and opcheck."""

from dataclasses import dataclass, replace

import torch
from mixed_cases import mixed_heads, mixed_values
from torch import Tensor

from ar_fast import reference


@dataclass
class NadeCase:
    x: Tensor
    in_weight: Tensor
    in_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    order: Tensor | None = None
    in_offsets: Tensor | None = None
    out_offsets: Tensor | None = None
    activation_scale: Tensor | None = None
    activation: str = "sigmoid"
    head: str = "bernoulli"
    levels: int = 0
    head_kinds: Tensor | None = None

    def arguments(self) -> tuple:
        """In the order of the schema of nade."""
        return (
            self.x, self.in_weight, self.in_bias, self.out_weight, self.out_bias, self.order, self.in_offsets,
            self.out_offsets, self.activation_scale, self.activation,
        )  # fmt: skip

    def log_prob_arguments(self) -> tuple:
        """In the order of the schema of nade_log_prob."""
        return (*self.arguments(), self.head, self.levels, self.head_kinds)

    def real_tensors(self) -> dict[str, Tensor]:
        """The tensors that have a gradient, by name."""
        names = ["in_weight", "in_bias", "out_weight", "out_bias", "activation_scale", "x"]
        tensors = {name: getattr(self, name) for name in names}
        return {name: t for name, t in tensors.items() if t is not None and t.is_floating_point()}

    def map(self, function) -> "NadeCase":
        """The case with ``function`` applied to every tensor."""
        return replace(self, **{k: function(v) for k, v in vars(self).items() if isinstance(v, Tensor)})

    def upcast(self) -> "NadeCase":
        """In float64, for the reference: the same numbers, rounded no further."""
        return self.map(lambda t: t.double() if t.is_floating_point() else t)


def nade_case(
    batch: int = 5,
    variables: int = 7,
    hidden: int = 19,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    x: str = "binary",
    parameters: int = 1,
    activation: str = "sigmoid",
    ordered: bool = True,
    scaled: bool = False,
    row_bias: bool = False,
    ragged: bool = False,
    head: str = "bernoulli",
) -> NadeCase:
    """``x``: "binary" and "dense" (reals), "bool", "integer" (0, 1) or "category" (gathers a row). ``parameters`` per
    variable; ``ragged``: rows of both weights differ between variables. ``row_bias``: in_bias is (B, H). ``head``
    chooses x itself, and ``parameters`` then counts categories or components; "per_variable" is all of them, "mixed"
    its x and weights without a head."""
    real = {"dtype": dtype, "device": device}
    counts = torch.randint(1, 4, (variables,)) if ragged else torch.full((variables,), parameters)
    categories = torch.randint(2, 5, (variables,)) if ragged else torch.full((variables,), 3)
    levels, head_kinds, inputs = 0, None, None
    if head == "per_variable" or x == "mixed":
        head_kinds, counts, inputs = mixed_heads(variables, parameters)
        x, ragged = "mixed", True
    elif head == "categorical":
        x, categories = "category", counts
    elif head.endswith("mixture"):
        x, counts = head, 3 * counts
        levels = 7 if head == "logistic_mixture" else 0
    in_rows = int(categories.sum()) if x == "category" else variables if inputs is None else int(inputs.sum())
    values = {
        "binary": lambda: (torch.rand(batch, variables) < 0.3).to(dtype),
        "dense": lambda: torch.rand(batch, variables).to(dtype),
        "bool": lambda: torch.rand(batch, variables) < 0.3,
        "integer": lambda: torch.randint(0, 2, (batch, variables)),
        "mixed": lambda: mixed_values(head_kinds, counts, batch).to(reference.compute_dtype(dtype)),
        "category": lambda: (torch.rand(batch, variables) * categories).long(),
        "gaussian_mixture": lambda: torch.randn(batch, variables).to(dtype),
        "logistic_mixture": lambda: (2 * torch.randint(0, 7, (batch, variables)) / 6 - 1).to(dtype),
    }[x]()

    def offsets(sizes: Tensor) -> Tensor:
        return torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)]).to(device)

    # Real draws feed back: with small weights rounding does not grow from one to the next.
    size = 0.1 if head.endswith("mixture") or x == "mixed" else 1.0
    return NadeCase(
        x=values.to(device),
        in_weight=torch.randn(in_rows, hidden, **real) * size,
        in_bias=torch.randn(*([batch] if row_bias else []), hidden, **real),
        out_weight=torch.randn(int(counts.sum()), hidden, **real) / max(1, hidden) ** 0.5,
        out_bias=torch.randn(int(counts.sum()), **real) * size,
        order=torch.randperm(variables).to(device) if ordered else None,
        in_offsets=offsets(categories) if ragged and x == "category" else None if inputs is None else offsets(inputs),
        out_offsets=offsets(counts) if ragged else None,
        activation_scale=torch.rand(variables, **real) + 0.5 if scaled else None,
        activation=activation,
        head=head,
        levels=levels,
        head_kinds=head_kinds.to(device) if head == "per_variable" else None,
    )
