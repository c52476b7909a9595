"""Inputs of the masked linear ops: one generator feeds the comparison with the reference, gradcheck and opcheck."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ar_fast import Mask, reference

# sorted and raster are staircases in place; the next three need their rows, columns or both sorted; blocks has tiles
# that are empty, full and mixed.
KINDS = ["sorted", "raster", "rows", "columns", "both", "blocks"]


def make_mask(kind: str, outputs: int, inputs: int) -> Mask:
    if kind == "blocks":
        allowed = torch.rand(outputs, inputs) < 0.5
        allowed[:64, 64:128] = False
        allowed[64:128, :64] = True
        return Mask.from_dense(allowed) if inputs > 2 and outputs > 2 else blocks(allowed)
    in_degrees = torch.arange(inputs)
    out_degrees = torch.randint(-1, inputs, (outputs,))
    if kind == "raster":
        out_degrees = (torch.arange(outputs) * (inputs + 1)) // max(outputs, 1) - 1
    elif kind in ("sorted", "columns"):
        out_degrees = out_degrees.sort().values
    if kind in ("columns", "both"):
        in_degrees = in_degrees[torch.randperm(inputs)]
    return Mask.from_degrees(in_degrees, out_degrees)


def blocks(allowed: Tensor) -> Mask:
    """A blocks plan, also of a mask that is nested."""
    outputs, inputs = allowed.shape
    tiles = torch.zeros(-(-outputs // 64), -(-inputs // 64), dtype=torch.int32)
    for r in range(tiles.shape[0]):
        for c in range(tiles.shape[1]):
            tile = allowed[64 * r : 64 * r + 64, 64 * c : 64 * c + 64]
            tiles[r, c] = 1 if tile.all() else 2 if tile.any() else 0
    return Mask(outputs, inputs, tiles=tiles, dense_mask=allowed)


@dataclass
class MaskedCase:
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    mask: Mask

    @property
    def plan(self) -> tuple:
        return self.mask.plan

    def upcast(self) -> "MaskedCase":
        """In float64, for the reference, with zeros where the weight is masked."""
        weight = torch.where(self.allowed, self.weight.double(), 0.0)
        return replace(
            self, input=self.input.double(), weight=weight, bias=None if self.bias is None else self.bias.double()
        )

    @property
    def allowed(self) -> Tensor:
        return reference.mask_from_plan(self.weight.shape, *self.plan)


def masked_case(
    batch: int | tuple[int, ...],
    inputs: int,
    outputs: int,
    kind: str = "sorted",
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    bias: bool = True,
    poison: bool = False,
) -> MaskedCase:
    """Random; with ``poison`` every masked weight is NaN or infinite."""
    batch = (batch,) if isinstance(batch, int) else batch
    mask = make_mask(kind, outputs, inputs)
    weight = torch.randn(outputs, inputs, dtype=torch.float64) / max(inputs, 1) ** 0.5
    if poison:
        nothing = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=torch.float64)
        weight = torch.where(mask.to_dense(), weight, nothing[torch.randint(3, weight.shape)])
    return MaskedCase(
        torch.randn(*batch, inputs, dtype=torch.float64).to(device, dtype),
        weight.to(device, dtype),
        torch.randn(outputs, dtype=torch.float64).to(device, dtype) if bias else None,
        mask.to(device),
    )
