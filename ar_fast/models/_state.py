"""The state of an evaluation one variable at a time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["State"]


@dataclass(frozen=True)
class State:
    """The state of an evaluation one variable at a time: what ``begin`` and ``next`` return.

    Attributes:
        position: how many variables are known.
        variable: the flat index of the next variable, or None when all are known.
        parameters: (*batch, K), the parameters of its conditional given the known variables, or None when all are
            known; in standardised units if the model is standardised.
        tensors: what the model passes on from one variable to the next.
    """

    position: int
    variable: int | None
    parameters: Tensor | None
    tensors: tuple[Tensor, ...]
