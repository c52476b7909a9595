"""Masks of linear maps, stored as plans that the kernels read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ._structure import building

__all__ = ["Mask"]

TILE_SIZE = 64
# Rows of a mask in blocks that the fingerprint reads at a time: each element takes 8 bytes there.
_FINGERPRINT_ROWS = 1024
# The same number as mask_most_blocks of the kernels: steps lie at the edges of so many blocks of rows at most.
_MOST_BLOCKS = 16
# Masks with as many inputs and outputs have steps: smaller products are over before their strips were launched.
_LEAST_STEPPED = 1024


class Mask:
    """Which inputs each output of a linear map sees: a bool matrix (O, I), stored as a plan and not as a matrix.

    There are two kinds of plan:

    - nested: the sets of inputs that the rows see are nested, as in every autoregressive network. In the column order
      ``columns``, row o sees the first ``extents[o]`` inputs; ``rows`` lists the rows by ascending extent. ``columns``
      and ``rows`` are None if the inputs and the rows are in that order already.
    - blocks: any mask. ``dense_mask`` is the matrix, and ``tiles`` says of each square of 64 rows and columns whether
      it is empty (0), full (1) or mixed (2).

    Make one with :meth:`from_degrees`, :meth:`from_dense` or :meth:`dense`; build it once and keep it.

    Attributes:
        out_features: O.
        in_features: I.
        extents: (O,) int32, or None in a blocks plan.
        rows: (O,) int32, or None.
        columns: (I,) int32, or None.
        tiles: (ceil(O / 64), ceil(I / 64)) int32, or None in a nested plan.
        dense_mask: (O, I) bool, or None in a nested plan.
        steps: the extents of rows 0, s - 1, 2 s - 1, ... and O - 1, of a large mask with neither rows nor columns;
            otherwise empty. s is O / 16, rounded up to a multiple of 64. These numbers are known without asking a GPU.

    Example:
        >>> Mask.from_degrees([1, 2, 3], [1, 2]).to_dense()
        tensor([[ True, False, False],
                [ True,  True, False]])
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        extents: Tensor | None = None,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
        tiles: Tensor | None = None,
        dense_mask: Tensor | None = None,
        steps: Sequence[int] = (),
    ) -> None:
        self.out_features = out_features
        self.in_features = in_features
        self.extents = extents
        self.rows = rows
        self.columns = columns
        self.tiles = tiles
        self.dense_mask = dense_mask
        self.steps = list(steps)

    @classmethod
    def from_degrees(
        cls, in_degrees: Tensor | Sequence[int], out_degrees: Tensor | Sequence[int], strict: bool = False
    ) -> Mask:
        """mask[o, i] = in_degrees[i] <= out_degrees[o], or < if strict is true.

        Args:
            in_degrees: (I,) integers.
            out_degrees: (O,) integers.
            strict: compare with <, as the output layer of a MADE with degrees 1 ... D does.

        Raises:
            ValueError: if the degrees are not one-dimensional integers, or have no values (on the meta device).

        Source: Germain, Gregor, Murray, Larochelle, "MADE", ICML 2015, equations 12 and 13.

        Example:
            >>> Mask.from_degrees([1, 2, 3], [1, 2, 3], strict=True)
            Mask(out_features=3, in_features=3, plan='nested', density=0.333)
        """
        with building():
            in_degrees = _degrees("in_degrees", in_degrees)
            out_degrees = _degrees("out_degrees", out_degrees).to(in_degrees.device)
            sorted_degrees, columns = in_degrees.sort(stable=True)
            extents = torch.searchsorted(sorted_degrees, out_degrees, right=not strict)
            return cls._nested(extents, columns)

    @classmethod
    def from_dense(cls, mask: Tensor) -> Mask:
        """The plan of any bool matrix (O, I): nested if the rows are nested sets, otherwise blocks.

        Raises:
            ValueError: if mask is not two-dimensional or not bool, or has no values (on the meta device).

        Example:
            >>> Mask.from_dense(torch.eye(2, dtype=torch.bool))
            Mask(out_features=2, in_features=2, plan='blocks', density=0.5)
        """
        if mask.dim() != 2:
            raise ValueError(f"Mask.from_dense: mask must have shape (O, I), got {tuple(mask.shape)}")
        if mask.dtype != torch.bool:
            raise ValueError(f"Mask.from_dense: mask must be bool, got {mask.dtype}")
        if mask.is_meta:
            raise ValueError("Mask.from_dense: mask must have values, got a tensor on the meta device")
        out_features, in_features = mask.shape
        with building():
            extents = mask.sum(1)
            # If the rows are nested, every row's inputs come first when they are sorted by how many rows see them.
            columns = mask.sum(0).argsort(descending=True, stable=True)
            staircase = torch.arange(in_features, device=mask.device) < extents[:, None]
            if torch.equal(mask[:, columns], staircase):
                return cls._nested(extents, columns)
            return cls(out_features, in_features, tiles=_tiles(mask), dense_mask=mask.contiguous())

    @classmethod
    def dense(cls, out_features: int, in_features: int) -> Mask:
        """The mask that hides nothing.

        Example:
            >>> Mask.dense(2, 3)
            Mask(out_features=2, in_features=3, plan='nested', density=1.0)
        """
        with building():
            return cls._nested(torch.full((out_features,), in_features), torch.arange(in_features))

    @classmethod
    def _nested(cls, extents: Tensor, columns: Tensor) -> Mask:
        rows = extents.argsort(stable=True)
        in_place = _is_identity(rows), _is_identity(columns)
        large = min(extents.numel(), columns.numel()) >= _LEAST_STEPPED
        return cls(
            extents.numel(),
            columns.numel(),
            extents=extents.to(torch.int32),
            rows=None if in_place[0] else rows.to(torch.int32),
            columns=None if in_place[1] else columns.to(torch.int32),
            steps=_steps(extents) if large and all(in_place) else (),
        )

    @classmethod
    def _of_plan(cls, out_features: int, in_features: int, plan: Sequence[Tensor | None], steps: Sequence[int]) -> Mask:
        extents, rows, columns, tiles, dense_mask = plan
        return cls(out_features, in_features, extents, rows, columns, tiles, dense_mask, steps)

    @property
    def plan(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """(extents, rows, columns, tiles, dense_mask): the plan as the ops take it."""
        return self.extents, self.rows, self.columns, self.tiles, self.dense_mask

    @property
    def device(self) -> torch.device:
        return (self.extents if self.extents is not None else self.dense_mask).device

    def to_dense(self) -> Tensor:
        """The (O, I) bool matrix."""
        if self.extents is None:
            return self.dense_mask
        rank = torch.arange(self.in_features, device=self.extents.device)
        if self.columns is not None:
            rank = self.columns.long().argsort()
        return rank < self.extents[:, None]

    def count(self) -> int:
        """How many elements of the mask are True."""
        return int(self.dense_mask.sum() if self.extents is None else self.extents.sum())

    def fingerprint(self) -> str:
        """16 hexadecimal digits that are the same for any two masks that are the same matrix, whatever their plans.

        Example:
            >>> Mask.dense(2, 3).fingerprint() == Mask.from_dense(torch.ones(2, 3, dtype=torch.bool)).fingerprint()
            True
        """
        with building():
            # int64 arithmetic wraps modulo 2^64. Each input has a random number. Each row has the sum of the numbers of
            # the inputs that it sees, mixed, so that the result depends on which inputs a row sees together. The rows
            # are summed with random factors too.
            of_input = _mixed(torch.arange(self.in_features))
            if self.extents is not None:
                by_column = of_input if self.columns is None else of_input[self.columns.cpu().long()]
                of_row = F.pad(by_column.cumsum(0), (1, 0))[self.extents.cpu().long()]
            else:
                parts = (rows.cpu() for rows in self.dense_mask.split(_FINGERPRINT_ROWS))
                of_row = torch.cat([torch.where(rows, of_input, 0).sum(1) for rows in parts])
            of_row = _mixed(of_row) * _mixed(torch.arange(self.out_features) + 2**32)
            shape = _mixed(torch.tensor([self.out_features, self.in_features])).tolist()
            return f"{(int(of_row.sum()) + shape[0] + 3 * shape[1]) % 2**64:016x}"

    def to(self, device: torch.device | str) -> Mask:
        """The same mask with its plan on another device."""
        moved = [tensor if tensor is None else tensor.to(device) for tensor in self.plan]
        return Mask._of_plan(self.out_features, self.in_features, moved, self.steps)

    def __repr__(self) -> str:
        kind = "blocks" if self.extents is None else "nested"
        shape = f"out_features={self.out_features}, in_features={self.in_features}"
        if self.device.type == "meta" or self.out_features * self.in_features == 0:
            return f"Mask({shape}, plan={kind!r})"
        density = self.count() / (self.out_features * self.in_features)
        return f"Mask({shape}, plan={kind!r}, density={density:.3})"


def _degrees(name: str, degrees: Tensor | Sequence[int]) -> Tensor:
    tensor = degrees if isinstance(degrees, Tensor) else torch.as_tensor(degrees)
    if tensor.is_meta:
        raise ValueError(f"Mask.from_degrees: {name} must have values, got a tensor on the meta device")
    if tensor.dim() != 1:
        raise ValueError(f"Mask.from_degrees: {name} must be one-dimensional, got shape {tuple(tensor.shape)}")
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        raise ValueError(f"Mask.from_degrees: {name} must hold integers, got {tensor.dtype}")
    return tensor.to(torch.int64)


def _mixed(numbers: Tensor) -> Tensor:
    """int64 -> int64, where each bit of the result depends on the whole number: SplitMix64 (Steele, Lea, Flood, OOPSLA
    2014)."""
    numbers = numbers + (0x9E3779B97F4A7C15 - 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64)):
        numbers = (numbers ^ ((numbers >> shift) & (2 ** (64 - shift) - 1))) * factor
    return numbers ^ ((numbers >> 31) & (2**33 - 1))


def _steps(extents: Tensor) -> list[int]:
    """The extents of rows 0, s - 1, 2 s - 1, ... and of the last one."""
    rows = extents.numel()
    each = -(-rows // (_MOST_BLOCKS * TILE_SIZE)) * TILE_SIZE
    places = [0, *range(each - 1, rows - 1, each), rows - 1]
    return extents[torch.tensor(places, device=extents.device)].tolist()


def _is_identity(permutation: Tensor) -> bool:
    return torch.equal(permutation, torch.arange(permutation.numel(), device=permutation.device))


def _tiles(mask: Tensor) -> Tensor:
    """0 empty, 1 full, 2 mixed, for each square of TILE_SIZE; a square cut off at an edge counts its elements only."""
    rows = [tile.sum(0) for tile in mask.split(TILE_SIZE)]
    counts = torch.stack([torch.stack([part.sum() for part in row.split(TILE_SIZE)]) for row in rows])
    out_sizes = torch.tensor([tile.shape[0] for tile in mask.split(TILE_SIZE)], device=mask.device)
    in_sizes = torch.tensor([tile.shape[1] for tile in mask.split(TILE_SIZE, 1)], device=mask.device)
    full = counts == out_sizes[:, None] * in_sizes
    return torch.where(counts == 0, 0, torch.where(full, 1, 2)).to(torch.int32)
