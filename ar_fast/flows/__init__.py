"""Normalizing flows: masked autoregressive flows in both directions."""

from .distribution import FlowDistribution
from .maf import MAF, load
from .transform import AutoregressiveTransform
from .univariate import Affine, Spline

__all__ = ["MAF", "Affine", "AutoregressiveTransform", "FlowDistribution", "Spline", "load"]
