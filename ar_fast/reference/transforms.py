"""The transforms of flows in both directions, which define what their parameters and constants mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .heads import log_sigmoid, softplus


def affine_scale(raw: Tensor, transform: str, constants: Sequence[float]) -> Tensor:
    """The logarithm of the scale s of an affine transform x -> s x + shift, from the raw scale."""
    if transform == "affine_soft_clip":
        (limit,) = constants
        return raw / (1 + (raw / limit).abs())
    if transform == "affine_clamp":
        low, high = constants
        return raw.clamp(low, high)
    if transform == "affine_softplus":
        (least,) = constants
        return (softplus(raw) + least).log()
    if transform == "affine_sigmoid":
        bias, least = constants
        return (torch.sigmoid(raw + bias) + least).log()
    (bias,) = constants
    return log_sigmoid(raw + bias)


def affine_inverse(
    parameters: Tensor, noise: Tensor, transform: str, constants: Sequence[float]
) -> tuple[Tensor, Tensor]:
    shift, raw = parameters.unbind(-1)
    log_scale = affine_scale(raw, transform, constants)
    if transform == "affine_gated":
        shift = shift * torch.sigmoid(-raw - constants[0])
    return (noise - shift) * (-log_scale).exp(), -log_scale


def spline_knots(parameters: Tensor, transform: str, constants: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """The knots (..., K + 1) of a spline along both axes, and its derivatives there."""
    rows = parameters.shape[-1]
    own_ends = rows % 3 == 1
    bins = (rows + 1) // 3
    widths, heights, derivatives = parameters.split([bins, bins, rows - 2 * bins], -1)
    low, high = constants[:2]
    if transform == "spline_soft_clip":
        limit = constants[2]
        shares = [F.softmax(raw / (1 + (2 * raw / limit).abs()), -1) for raw in (widths, heights)]
        derivatives = (derivatives / (1 + (derivatives / limit).abs())).exp()
    else:
        *least, least_derivative, factor = constants[2:]
        shares = [
            own + (1 - own * bins) * F.softmax(raw * factor, -1)
            for own, raw in zip(least, (widths, heights), strict=True)
        ]
        derivatives = least_derivative + softplus(derivatives)
    x, y = (low + (high - low) * F.pad(share.cumsum(-1), (1, 0)) for share in shares)
    x[..., -1], y[..., -1] = high, high
    return x, y, derivatives if own_ends else F.pad(derivatives, (1, 1), value=1.0)


def spline_inverse(
    parameters: Tensor, noise: Tensor, transform: str, constants: Sequence[float]
) -> tuple[Tensor, Tensor]:
    x, y, derivatives = spline_knots(parameters, transform, constants)
    own_bin = (noise.unsqueeze(-1) >= y[..., 1:-1]).sum(-1, keepdim=True)

    def at(knots: Tensor, after: int) -> Tensor:
        return knots.gather(-1, own_bin + after).squeeze(-1)

    width, height = at(x, 1) - at(x, 0), at(y, 1) - at(y, 0)
    first, last, slope, above = at(derivatives, 0), at(derivatives, 1), height / width, noise - at(y, 0)
    curvature = first + last - 2 * slope
    a, b, c = height * (slope - first) + above * curvature, height * first - above * curvature, -slope * above
    # The bin contains the value, whatever rounding says.
    z = (2 * c / (-b - (b * b - 4 * a * c).clamp(min=0).sqrt())).clamp(0, 1)
    of_f = slope**2 * (2 * slope * z * (1 - z) + first * (1 - z) ** 2 + last * z**2)
    log_derivative = 2 * (slope + curvature * z * (1 - z)).log() - of_f.log()
    outside = (noise < constants[0]) | (noise > constants[1])
    return torch.where(outside, noise, at(x, 0) + z * width), log_derivative.masked_fill(outside, 0.0)


def transform_inverse(
    parameters: Tensor, noise: Tensor, transform: str, constants: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The value x = f^-1(u) of numbers u (...), and log dx/du; parameters (..., K). See csrc/kernels/transforms.h.

    Sources: Papamakarios, Pavlakou, Murray, "Masked autoregressive flow", NeurIPS 2017; Kingma et al., "Improved
    variational inference with inverse autoregressive flow", NeurIPS 2016; Durkan, Bekasov, Murray, Papamakarios,
    "Neural spline flows", NeurIPS 2019.
    """
    inverse = affine_inverse if transform.startswith("affine_") else spline_inverse
    return inverse(parameters, noise, transform, constants)


def affine_forward(parameters: Tensor, x: Tensor, transform: str, constants: Sequence[float]) -> tuple[Tensor, Tensor]:
    shift, raw = parameters.unbind(-1)
    log_scale = affine_scale(raw, transform, constants)
    if transform == "affine_gated":
        shift = shift * torch.sigmoid(-raw - constants[0])
    return log_scale.exp() * x + shift, log_scale


def spline_forward(parameters: Tensor, x: Tensor, transform: str, constants: Sequence[float]) -> tuple[Tensor, Tensor]:
    x_knots, y_knots, derivatives = spline_knots(parameters, transform, constants)
    outside = (x < constants[0]) | (x > constants[1])
    own_bin = (x.unsqueeze(-1) >= x_knots[..., 1:-1]).sum(-1, keepdim=True)

    def at(knots: Tensor, after: int) -> Tensor:
        return knots.gather(-1, own_bin + after).squeeze(-1)

    width, height = at(x_knots, 1) - at(x_knots, 0), at(y_knots, 1) - at(y_knots, 0)
    first, last, slope = at(derivatives, 0), at(derivatives, 1), height / width
    z = ((x - at(x_knots, 0)) / width).masked_fill(outside, 0.0)
    below = slope + (first + last - 2 * slope) * z * (1 - z)
    y = at(y_knots, 0) + height * (slope * z**2 + first * z * (1 - z)) / below
    of_f = slope**2 * (first * (1 - z) ** 2 + 2 * slope * z * (1 - z) + last * z**2) / below**2
    return torch.where(outside, x, y), of_f.log().masked_fill(outside, 0.0)


def univariate_transform(
    x: Tensor,
    parameters: Tensor,
    transform: str,
    constants: list[float],
    by_parameter: bool = False,
    scale_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """y = f(x) of numbers x (B, D), and the sum over the variables of log dy/dx; see csrc/kernels/transforms.h."""
    variables, count = x.shape[1], parameters.shape[1] // x.shape[1]
    if by_parameter:
        own = parameters.unflatten(1, (count, variables)).transpose(1, 2)
    else:
        own = parameters.unflatten(1, (variables, count))
    forward = affine_forward if transform.startswith("affine_") else spline_forward
    y, log_derivative = forward(own.flip(-1) if scale_first else own, x, transform, constants)
    return y, log_derivative.sum(-1)


def inverse_adjoint(
    grad: Tensor,
    factors: Tensor,
    weights: list[Tensor],
    slopes: list[Tensor],
    program: list[int],
    ends: list[int],
) -> Tensor:
    """Solves for the adjoints of all x: unit by unit from the last, each adds its own to those that it was made of."""
    steps = [program[i : i + 4] for i in range(0, len(program), 4)]
    levels = len(ends) // (len(steps) + 1) - 1
    of_value = [ends[i : i + levels + 1] for i in range(0, len(ends), levels + 1)]
    of_weights, of_slopes = iter(weights), iter(slopes)
    tensors = [
        (next(of_weights) if weighted else None, next(of_slopes) if sloped else None) for *_, weighted, sloped in steps
    ]
    variables, count = grad.shape[1], factors.shape[1] // grad.shape[1]
    adjoints = [grad.clone(), *(grad.new_zeros(len(grad), of_unit[-1]) for of_unit in of_value[1:])]
    bounds = [*of_value[0][1:], variables]
    for level in reversed(range(levels)):
        for variable in range(bounds[level], bounds[level + 1]):
            own = slice(variable * count, (variable + 1) * count)
            adjoints[-1][:, own] = adjoints[0][:, variable, None] * factors[:, own]
        for index in reversed(range(len(steps))):
            (source, other, *_), (weight, slope) = steps[index], tensors[index]
            for unit in range(*of_value[index + 1][level : level + 2]):
                adjoint = adjoints[index + 1][:, unit, None]
                if weight is not None:
                    adjoints[source] += adjoint * weight[unit]
                    continue
                adjoints[source][:, unit, None] += adjoint if slope is None else adjoint * slope[:, unit, None]
                if other >= 0:
                    adjoints[other][:, unit, None] += adjoint
    return adjoints[0]
