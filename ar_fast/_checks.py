"""The structure checks of the ops, for the calls that a plain-torch twin answers: the rules of csrc/ops/X.cpp."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import reference


def _shape(op: str, name: str, tensor: Tensor, rule: str, *sizes: int | None) -> None:
    matches = tensor.dim() == len(sizes) and all(
        size is None or given == size for given, size in zip(tensor.shape, sizes, strict=True)
    )
    if not matches:
        raise RuntimeError(f"{op}: {name} must have shape {rule}, got {list(tensor.shape)}")


def _same(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise RuntimeError(f"{op}: {name} must be on the device of {other_name}, {other.device}, got {tensor.device}")
    if tensor.dtype != other.dtype:
        raise RuntimeError(f"{op}: {name} must have the dtype of {other_name}, {other.dtype}, got {tensor.dtype}")


def _activation(op: str, activation: str, names: dict[str, Any]) -> None:
    if activation not in names:
        raise RuntimeError(f"{op}: activation must be one of {', '.join(names)}, got '{activation}'")


def _order(op: str, order: Tensor | None, variables: int) -> None:
    if order is not None:
        _shape(op, "order", order, f"(D,) with D = {variables}", variables)


def _x(op: str, x: Tensor, in_weight: Tensor) -> None:
    if x.is_floating_point() and x.dtype not in (in_weight.dtype, reference.compute_dtype(in_weight.dtype)):
        raise RuntimeError(
            f"{op}: x must be bool, integer, or floating of the dtype of in_weight, {in_weight.dtype}, "
            f"or of its compute dtype, got {x.dtype}"
        )


def _check_nade(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    order: Tensor | None,
    in_offsets: Tensor | None,
    out_offsets: Tensor | None,
    activation_scale: Tensor | None,
    activation: str,
    *_: object,
    op: str = "nade",
) -> None:
    _shape(op, "x", x, "(B, D)", None, None)
    _x(op, x, in_weight)
    variables = x.shape[1]
    _shape(op, "in_weight", in_weight, "(R_in, H)", None, None)
    hidden = in_weight.shape[1]
    if in_bias.dim() == 2:
        _shape(op, "in_bias", in_bias, "(H) or (B, H)", x.shape[0], hidden)
    else:
        _shape(op, "in_bias", in_bias, "(H) or (B, H)", hidden)
    _shape(op, "out_weight", out_weight, "(R_out, H)", None, hidden)
    _shape(op, "out_bias", out_bias, "(R_out)", out_weight.shape[0])
    for name, rows, offsets in (("in", in_weight, in_offsets), ("out", out_weight, out_offsets)):
        if offsets is not None:
            _shape(op, f"{name}_offsets", offsets, "(D + 1)", variables + 1)
        elif rows.shape[0] == 0 or rows.shape[0] % variables:
            raise RuntimeError(
                f"{op}: {name}_weight must have a multiple of D = {variables} rows, got {list(rows.shape)}"
            )
    if (in_offsets is not None or in_weight.shape[0] != variables) and x.is_floating_point():
        raise RuntimeError(f"{op}: x must be integer where it gathers rows of in_weight, got {x.dtype}")
    for name, tensor in (("in_bias", in_bias), ("out_weight", out_weight), ("out_bias", out_bias)):
        _same(op, name, tensor, "in_weight", in_weight)
    _order(op, order, variables)
    if activation_scale is not None:
        _shape(op, "activation_scale", activation_scale, "(D)", variables)
    _activation(op, activation, reference.ACTIVATIONS)


def _check_nade_log_prob(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    order: Tensor | None,
    activation_scale: Tensor | None,
    activation: str,
    *_: object,
) -> None:
    op = "nade_log_prob"
    _shape(op, "x", x, "(B, D)", None, None)
    _shape(op, "in_weight", in_weight, "(D, H)", x.shape[1], None)
    _shape(op, "out_weight", out_weight, "(D, H)", x.shape[1], in_weight.shape[1])
    arguments = x, in_weight, in_bias, out_weight, out_bias, order, None, None, activation_scale, activation
    _check_nade(*arguments, op=op)


def _check_draws(op: str, batch: int, variables: int, given: Tensor | None, known: Tensor | None) -> None:
    if (given is None) != (known is None):
        raise RuntimeError(f"{op}: given and known must come together")
    if given is not None and known is not None:
        _shape(op, "given", given, "(B, D)", batch, variables)
        _shape(op, "known", known, "(B, D)", batch, variables)


def _check_positions(op: str, start: int, stop: int, variables: int, temperature: float) -> None:
    if not 0 <= start <= stop <= variables:
        raise RuntimeError(f"{op}: 0 <= start <= stop <= D = {variables} must hold, got start {start}, stop {stop}")
    if not 0 < temperature < float("inf"):
        raise RuntimeError(f"{op}: temperature must be positive and finite, got {temperature}")


def _check_nade_sample(
    state: Tensor,
    in_weight: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    order: Tensor | None,
    activation_scale: Tensor | None,
    given: Tensor | None,
    known: Tensor | None,
    activation: str,
    seed: int,
    first_index: int,
    start: int,
    stop: int,
    temperature: float,
    *_: object,
) -> None:
    op = "nade_sample"
    _shape(op, "in_weight", in_weight, "(D, H)", None, None)
    variables, hidden = in_weight.shape
    _shape(op, "state", state, "(B, H)", None, hidden)
    _shape(op, "out_weight", out_weight, "(D, H)", variables, hidden)
    _shape(op, "out_bias", out_bias, "(D)", variables)
    _order(op, order, variables)
    _check_draws(op, state.shape[0], variables, given, known)
    _activation(op, activation, reference.ACTIVATIONS)
    _check_positions(op, start, stop, variables, temperature)


def _check_masked_linear(input: Tensor, weight: Tensor, bias: Tensor | None, *_: object) -> None:
    op = "masked_linear"
    _shape(op, "weight", weight, "(O, I)", None, None)
    if input.dim() == 0 or input.shape[-1] != weight.shape[1]:
        raise RuntimeError(f"{op}: input must have shape (..., I) with I = {weight.shape[1]}, got {list(input.shape)}")
    if bias is not None:
        _shape(op, "bias", bias, "(O)", weight.shape[0])


def _check_masked_mlp_sample(
    state: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    extents: list[Tensor],
    unit_ends: list[Tensor],
    order: Tensor | None,
    given: Tensor | None,
    known: Tensor | None,
    activation: str,
    seed: int,
    first_index: int,
    start: int,
    stop: int,
    temperature: float,
    *_: object,
) -> None:
    op = "masked_mlp_sample"
    variables = weights[-1].shape[0]
    width = variables + sum(weight.shape[0] for weight in weights[:-1])
    _shape(op, "state", state, f"(B, D + sum of hidden units) = (B, {width})", None, width)
    _order(op, order, variables)
    _check_draws(op, state.shape[0], variables, given, known)
    _activation(op, activation, reference.MLP_ACTIVATIONS)
    _check_positions(op, start, stop, variables, temperature)


CHECKS = {
    "nade": _check_nade,
    "nade_log_prob": _check_nade_log_prob,
    "nade_sample": _check_nade_sample,
    "masked_linear": _check_masked_linear,
    "masked_mlp_sample": _check_masked_mlp_sample,
}
