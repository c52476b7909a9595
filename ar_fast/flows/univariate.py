"""The increasing functions of one variable that flows are made of, each with parameters that a network computes."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["UNIVARIATE", "Affine", "Spline", "Univariate", "from_config"]


def _check_slope(name: str, slope: float) -> float:
    if not isinstance(slope, Real) or not 0 < slope < 1:
        raise ValueError(f"{name}: slope must be a number between 0 and 1, got {slope!r}")
    return float(slope)


class Affine:
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

    #: The transform's name in :func:`ar_fast.functional.masked_mlp_sample`.
    head = "affine_soft_clip"

    def __init__(self, slope: float = 1e-3) -> None:
        self.slope = _check_slope("Affine", slope)
        self.constants = (-math.log(self.slope),)
        self.parameters = 2

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """x (...) and parameters (..., 2) -> f(x) (...) and log f'(x) (...)."""
        shift, scale = raw.unbind(-1)
        log_scale = scale / (1 + (scale / self.constants[0]).abs())
        return torch.addcmul(shift, x, log_scale.exp()), log_scale

    def config(self) -> dict[str, Any]:
        return {"name": "affine", "slope": self.slope}

    def __repr__(self) -> str:
        return f"Affine(slope={self.slope})"


class Spline:
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

    #: The transform's name in :func:`ar_fast.functional.masked_mlp_sample`.
    head = "spline_soft_clip"

    def __init__(self, bins: int = 8, bound: float = 5.0, slope: float = 1e-3) -> None:
        if not isinstance(bins, Integral) or bins < 1:
            raise ValueError(f"Spline: bins must be a positive integer, got {bins!r}")
        if not isinstance(bound, Real) or not 0 < bound < math.inf:
            raise ValueError(f"Spline: bound must be a positive finite number, got {bound!r}")
        self.bins, self.bound, self.slope = int(bins), float(bound), _check_slope("Spline", slope)
        self._limit = -math.log(self.slope)
        self.constants = (-self.bound, self.bound, self._limit)
        self.parameters = 3 * self.bins - 1

    def _knots(self, raw: Tensor) -> Tensor:
        shares = F.softmax(raw / (1 + (2 * raw / self._limit).abs()), -1)
        inner = self.bound * (2 * shares.cumsum(-1)[..., :-1] - 1)
        return F.pad(F.pad(inner, (1, 0), value=-self.bound), (0, 1), value=self.bound)

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """x (...) and parameters (..., 3 K - 1) -> f(x) (...) and log f'(x) (...)."""
        widths, heights, derivatives = raw.split([self.bins, self.bins, self.bins - 1], -1)
        across, up = self._knots(widths), self._knots(heights)
        derivatives = F.pad(derivatives / (1 + (derivatives / self._limit).abs()), (1, 1)).exp()
        # Elsewhere the value is not used, but must be finite, and so must its gradient.
        inside = x.clamp(-self.bound, self.bound)
        own = (inside.unsqueeze(-1) >= across[..., 1:-1]).sum(-1, keepdim=True)
        ends = torch.cat([own, own + 1], -1)
        (left, right), (low, high), (first, last) = (
            knots.gather(-1, ends).unbind(-1) for knots in (across, up, derivatives)
        )
        width, height = right - left, high - low
        slope, z = height / width, (inside - left) / width
        rest = z * (1 - z)
        denominator = slope + (first + last - 2 * slope) * rest
        u = low + height * (slope * z * z + first * rest) / denominator
        numerator = slope * slope * (last * z * z + 2 * slope * rest + first * (1 - z) ** 2)
        outside = (x < -self.bound) | (x > self.bound)
        log_slope = numerator.log() - 2 * denominator.log()
        return torch.where(outside, x, u), log_slope.masked_fill(outside, 0.0)

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
