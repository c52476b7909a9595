"""A case is one piece of work done by several contenders on the same data, built when it is timed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

OURS = "ar_fast"


@dataclass
class Contender:
    """One way to do a case's work: `run` does it, `values` picks the tensors that are judged out of its result.

    No values: a bound, which does something else.
    """

    run: Callable[[], object]
    values: Callable[[object], Sequence[Tensor]] = lambda result: (result,)


@dataclass
class Built:
    """makers: name -> function that makes the contender, compilation included; more names than take part are allowed.
    error: a contender's values -> their relative error against float64.
    """

    makers: dict[str, Callable[[], Contender]]
    error: Callable[[Sequence[Tensor]], float]


@dataclass
class Case:
    """name, sizes, dtype and data say what is timed; `contenders` names who takes part, ours first."""

    name: str
    sizes: str
    data: str
    build: Callable[[], Built]
    contenders: Sequence[str]
    dtype: str = "float32"

    @property
    def title(self) -> str:
        return f"{self.name}, {self.sizes}, {self.data}"


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
