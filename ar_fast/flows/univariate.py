"""The increasing functions of one variable that flows are made of, each with parameters that a network computes."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from .. import functional
from .._integers import is_integer, is_real

__all__ = ["UNIVARIATE", "Affine", "Spline", "Univariate", "from_config"]


def _check_slope(name: str, slope: float) -> float:
    if not is_real(slope) or not 0 < slope < 1:
        raise ValueError(f"{name}: slope must be a number between 0 and 1, got {slope!r}")
    return float(slope)


class _Univariate:
    """What the transforms share: they are those of :func:`ar_fast.functional.univariate_transform`."""

    #: The op's name, its constants, and the number of parameters of a variable.
    head: str
    constants: tuple[float, ...]
    parameters: int

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """x (...) and parameters (..., K) -> f(x) (...) and log f'(x) (...)."""
        rows = x.numel()
        u, log_slope = functional.univariate_transform(
            x.reshape(rows, 1), raw.reshape(rows, self.parameters), self.head, self.constants
        )
        return u.reshape(x.shape), log_slope.reshape(x.shape)


class Affine(_Univariate):
    r"""f(x) = s x + b with the parameters b and a, :math:`s = \exp(a / (1 + |a / \log(slope)|))`.

    Args:
        slope: every s is between slope and 1 / slope.

    Source: Papamakarios, Pavlakou, Murray, "Masked autoregressive flow", NeurIPS 2017, equations 3 and 4, with the
    bounded scale of zuko.

    Example:
        >>> u, log_slope = Affine().forward(torch.tensor([3.0]), torch.tensor([[1.0, 0.0]]))
        >>> u, log_slope
        (tensor([4.]), tensor([0.]))
    """

    head = "affine_soft_clip"

    def __init__(self, slope: float = 1e-3) -> None:
        self.slope = _check_slope("Affine", slope)
        self.constants = (-math.log(self.slope),)
        self.parameters = 2

    def config(self) -> dict[str, Any]:
        return {"name": "affine", "slope": self.slope}

    def __repr__(self) -> str:
        return f"Affine(slope={self.slope})"


class Spline(_Univariate):
    """A rational-quadratic spline that maps [-bound, bound] to itself, and is the identity elsewhere.

    Its parameters are K widths, K heights and K - 1 derivatives at the inner knots, all of them raw; the derivatives at
    the ends are 1.

    Args:
        bins: K.
        bound: the half width of the interval.
        slope: every derivative at a knot is between slope and 1 / slope.

    Source: Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", NeurIPS 2019, section 3.1 and equations 4 to
    8, with the bounded parameters of zuko.

    Example:
        >>> Spline(bins=4).parameters
        11
    """

    head = "spline_soft_clip"

    def __init__(self, bins: int = 8, bound: float = 5.0, slope: float = 1e-3) -> None:
        if not is_integer(bins) or bins < 1:
            raise ValueError(f"Spline: bins must be a positive integer, got {bins!r}")
        if not is_real(bound) or not 0 < bound < math.inf:
            raise ValueError(f"Spline: bound must be a positive finite number, got {bound!r}")
        self.bins, self.bound, self.slope = int(bins), float(bound), _check_slope("Spline", slope)
        self.constants = (-self.bound, self.bound, -math.log(self.slope))
        self.parameters = 3 * self.bins - 1

    def config(self) -> dict[str, Any]:
        return {"name": "spline", "bins": self.bins, "bound": self.bound, "slope": self.slope}

    def __repr__(self) -> str:
        return f"Spline(bins={self.bins}, bound={self.bound}, slope={self.slope})"


Univariate = Affine | Spline
#: The univariate transforms by their names.
UNIVARIATE = {"affine": Affine, "spline": Spline}


def from_config(config: dict[str, Any]) -> Univariate:
    """The transform that ``config`` describes."""
    arguments = dict(config)
    return UNIVARIATE[arguments.pop("name")](**arguments)
