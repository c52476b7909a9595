"""A case is one piece of work done by several contenders on the same data; building one is put off until it is timed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

OURS = "ar_fast"


@dataclass
class Contender:
    """One way to do a case's work.

    run: the work, without arguments; its result is only looked at once.
    values: the result -> the tensors to compare with the case's reference.
    """

    run: Callable[[], object]
    values: Callable[[object], Sequence[Tensor]] = lambda result: (result,)


@dataclass
class Case:
    """name, sizes, dtype and data say what is timed; `build` makes the contenders, `reference` the float64 values.

    build: -> name -> function that makes the contender, compilation included.
    error: result of a contender -> its relative error against float64. Made by `build`, as it shares its data.
    """

    name: str
    sizes: str
    data: str
    build: Callable[[], "Built"]
    contenders: Sequence[str]
    dtype: str = "float32"

    @property
    def title(self) -> str:
        return f"{self.name}, {self.sizes}, {self.data}"


@dataclass
class Built:
    makers: dict[str, Callable[[], Contender]]
    error: Callable[[Sequence[Tensor]], float]
    skipped: dict[str, str] = field(default_factory=dict)


def relative_error(values: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The largest difference, as a part of the largest magnitude, over tensors that are compared one by one."""
    worst = 0.0
    for value, exact in zip(values, reference, strict=True):
        exact = exact.detach().double().cpu()
        difference = (value.detach().double().cpu() - exact).abs().max()
        worst = max(worst, (difference / exact.abs().max().clamp_min(1e-300)).item())
    return worst


def against(reference: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], float]:
    return lambda values: relative_error(values, reference)


def no_grad(function: Callable[[], object]) -> Callable[[], object]:
    return torch.no_grad()(function)
