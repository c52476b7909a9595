"""The structure checks of the ops, for the calls that a plain-torch twin answers: the rules of csrc/ops/X.cpp."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ._vocabulary import ACTIVATIONS, HEADS, MLP_ACTIVATIONS, compute_dtype

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _shape(op: str, name: str, tensor: Tensor, rule: str, *sizes: int | None) -> None:
    """sizes: one per dimension, None where any will do."""
    matches = tensor.dim() == len(sizes) and all(
        size is None or given == size for given, size in zip(tensor.shape, sizes, strict=True)
    )
    if not matches:
        raise RuntimeError(f"{op}: {name} must have shape {rule}, got {list(tensor.shape)}")


def _dtype(op: str, name: str, tensor: Tensor, *dtypes: torch.dtype) -> None:
    if tensor.dtype not in dtypes:
        raise RuntimeError(f"{op}: {name} must be {' or '.join(map(str, dtypes))}, got {tensor.dtype}")


def _device(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise RuntimeError(f"{op}: {name} must be on the device of {other_name}, {other.device}, got {tensor.device}")


def _like(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    _device(op, name, tensor, other_name, other)
    if tensor.dtype != other.dtype:
        raise RuntimeError(f"{op}: {name} must have the dtype of {other_name}, {other.dtype}, got {tensor.dtype}")


def _one_of(op: str, name: str, given: str, names: Iterable[str]) -> None:
    names = list(names)
    if given not in names:
        raise RuntimeError(f"{op}: {name} must be one of {', '.join(names)}, got '{given}'")


def _indices(op: str, name: str, tensor: Tensor | None, rule: str, size: int, weight: Tensor) -> None:
    if tensor is not None:
        _shape(op, name, tensor, rule, size)
        _dtype(op, name, tensor, torch.int64)
        _device(op, name, tensor, "in_weight", weight)


def _rows(op: str, name: str, weight: Tensor, variables: int, offsets: Tensor | None) -> None:
    if offsets is None and (weight.shape[0] == 0 or weight.shape[0] % variables):
        raise RuntimeError(
            f"{op}: {name}_weight must have a multiple of D = {variables} rows unless {name}_offsets is given, "
            f"got shape {list(weight.shape)}"
        )


def _nade(
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
    batch, variables = x.shape
    if variables == 0:
        raise RuntimeError(f"{op}: x must have at least one variable, got shape {list(x.shape)}")
    _shape(op, "in_weight", in_weight, "(R_in, H)", None, None)
    _dtype(op, "in_weight", in_weight, *FLOATING)
    hidden = in_weight.shape[1]
    _shape(op, "in_bias", in_bias, "(H) or (B, H)", *([batch, hidden] if in_bias.dim() == 2 else [hidden]))
    _shape(op, "out_weight", out_weight, "(R_out, H)", None, hidden)
    _shape(op, "out_bias", out_bias, "(R_out)", out_weight.shape[0])
    for name, tensor in (("in_bias", in_bias), ("out_weight", out_weight), ("out_bias", out_bias)):
        _like(op, name, tensor, "in_weight", in_weight)
    _device(op, "x", x, "in_weight", in_weight)
    _indices(op, "order", order, "(D)", variables, in_weight)
    _indices(op, "in_offsets", in_offsets, "(D + 1)", variables + 1, in_weight)
    _indices(op, "out_offsets", out_offsets, "(D + 1)", variables + 1, in_weight)
    if activation_scale is not None:
        _shape(op, "activation_scale", activation_scale, "(D)", variables)
        _like(op, "activation_scale", activation_scale, "in_weight", in_weight)
    if x.is_floating_point():
        if in_offsets is None and in_weight.shape[0] != variables:
            raise RuntimeError(
                f"{op}: x must be an integer category where in_weight has a row per category, got {x.dtype}"
            )
        if x.dtype not in (in_weight.dtype, compute_dtype(in_weight.dtype)):
            raise RuntimeError(
                f"{op}: x must be bool, integer, {in_weight.dtype} or {compute_dtype(in_weight.dtype)}, got {x.dtype}"
            )
    elif x.is_complex():
        raise RuntimeError(f"{op}: x must be real, got {x.dtype}")
    _rows(op, "in", in_weight, variables, in_offsets)
    _rows(op, "out", out_weight, variables, out_offsets)
    _one_of(op, "activation", activation, ACTIVATIONS)


def _head(
    op: str,
    head: str,
    levels: int,
    head_kinds: Tensor | None,
    owner: str,
    rows: int,
    variables: int,
    offsets: Tensor | None,
    *,
    others: tuple[str, ...] = ("per_variable",),
) -> None:
    _one_of(op, "head", head, (*HEADS, *others))
    if (head_kinds is not None) != (head == "per_variable"):
        raise RuntimeError(
            f"{op}: head_kinds must be given for a per_variable head and for no other, "
            f"got {'none' if head_kinds is None else 'some'} for '{head}'"
        )
    if head_kinds is not None:
        _shape(op, "head_kinds", head_kinds, "(D, 2)", variables, 2)
        _dtype(op, "head_kinds", head_kinds, torch.int64)
    if levels < 2 if head == "logistic_mixture" else levels != 0:
        rule = "at least 2 for logistic_mixture" if head == "logistic_mixture" else "0 but for logistic_mixture"
        raise RuntimeError(f"{op}: levels must be {rule}, got {levels}")
    if head == "bernoulli" and rows != variables:
        raise RuntimeError(
            f"{op}: {owner} must have one row per variable, {variables}, for a bernoulli head, got {rows}"
        )
    if head.endswith("mixture") and rows % (3 if offsets is not None else 3 * variables):
        raise RuntimeError(
            f"{op}: {owner} must have 3 K rows per variable (logits, means, log-scales) for a mixture head, got {rows} "
            f"for {variables} variables"
        )


def _in_offsets(op: str, head: str, in_offsets: Tensor | None, variables: int) -> None:
    if (in_offsets is not None) != (head == "per_variable"):
        raise RuntimeError(
            f"{op}: in_offsets must be given for a per_variable head and for no other, "
            f"got {'none' if in_offsets is None else 'some'}"
        )
    if in_offsets is not None:
        _shape(op, "in_offsets", in_offsets, "(D + 1)", variables + 1)
        _dtype(op, "in_offsets", in_offsets, torch.int64)


def _nade_log_prob(
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
    head: str = "bernoulli",
    levels: int = 0,
    head_kinds: Tensor | None = None,
    *_: object,
) -> None:
    op = "nade_log_prob"
    weights = in_weight, in_bias, out_weight, out_bias
    _nade(x, *weights, order, in_offsets, out_offsets, activation_scale, activation, op=op)
    _head(op, head, levels, head_kinds, "out_weight", out_weight.shape[0], x.shape[1], out_offsets)
    if head == "per_variable" and not x.is_floating_point():
        raise RuntimeError(f"{op}: x must be floating for a per_variable head, got {x.dtype}")
    if head != "per_variable" and x.is_floating_point() and in_offsets is not None:
        raise RuntimeError(
            f"{op}: x must be an integer category where in_weight has a row per category, but for a per_variable head, "
            f"got {x.dtype}"
        )


def _head_log_prob(
    parameters: Tensor, x: Tensor, offsets: Tensor | None, head: str, levels: int, head_kinds: Tensor | None = None
) -> None:
    op = "head_log_prob"
    _shape(op, "parameters", parameters, "(B, R_out)", None, None)
    _dtype(op, "parameters", parameters, torch.float32, torch.float64)
    _shape(op, "x", x, "(B, D)", parameters.shape[0], None)
    _device(op, "x", x, "parameters", parameters)
    rows, variables = parameters.shape[1], x.shape[1]
    if variables == 0:
        raise RuntimeError(f"{op}: x must have at least one variable, got shape {list(x.shape)}")
    if offsets is not None:
        _shape(op, "offsets", offsets, "(D + 1)", variables + 1)
        _dtype(op, "offsets", offsets, torch.int64)
    elif rows == 0 or rows % variables:
        raise RuntimeError(
            f"{op}: parameters must have a multiple of D = {variables} columns unless offsets is given, "
            f"got shape {list(parameters.shape)}"
        )
    _head(op, head, levels, head_kinds, "parameters", rows, variables, offsets)


def _draws(
    op: str,
    state: Tensor,
    variables: int,
    given: Tensor | None,
    known: Tensor | None,
    start: int,
    stop: int,
    temperature: float,
) -> None:
    if (given is None) != (known is None):
        raise RuntimeError(f"{op}: given and known come together, got only {'given' if known is None else 'known'}")
    if given is not None and known is not None:
        for name, tensor, dtype in (("given", given, state.dtype), ("known", known, torch.bool)):
            _shape(op, name, tensor, "(B, D)", state.shape[0], variables)
            _dtype(op, name, tensor, dtype)
            _device(op, name, tensor, "state", state)
    if not 0 <= start <= stop <= variables:
        raise RuntimeError(
            f"{op}: positions must satisfy 0 <= start <= stop <= D = {variables}, got start = {start}, stop = {stop}"
        )
    if not temperature > 0:
        raise RuntimeError(f"{op}: temperature must be positive, got {temperature}")


def _nade_sample(
    state: Tensor,
    in_weight: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    order: Tensor | None,
    in_offsets: Tensor | None,
    out_offsets: Tensor | None,
    activation_scale: Tensor | None,
    given: Tensor | None,
    known: Tensor | None,
    variables: int,
    activation: str,
    head: str,
    levels: int,
    head_kinds: Tensor | None,
    seed: int,
    first_index: int,
    start: int,
    stop: int,
    temperature: float,
    *_: object,
) -> None:
    op = "nade_sample"
    if variables < 1:
        raise RuntimeError(f"{op}: variables must be positive, got {variables}")
    _shape(op, "in_weight", in_weight, "(R_in, H)", None, None)
    _dtype(op, "in_weight", in_weight, *FLOATING)
    hidden = in_weight.shape[1]
    _shape(op, "out_weight", out_weight, "(R_out, H)", None, hidden)
    _shape(op, "out_bias", out_bias, "(R_out)", out_weight.shape[0])
    _shape(op, "state", state, "(B, H)", None, hidden)
    _dtype(op, "state", state, compute_dtype(in_weight.dtype))
    for name, tensor in (("out_weight", out_weight), ("out_bias", out_bias)):
        _like(op, name, tensor, "in_weight", in_weight)
    _device(op, "state", state, "in_weight", in_weight)
    _indices(op, "order", order, "(D)", variables, in_weight)
    _indices(op, "in_offsets", in_offsets, "(D + 1)", variables + 1, in_weight)
    _indices(op, "out_offsets", out_offsets, "(D + 1)", variables + 1, in_weight)
    _rows(op, "in", in_weight, variables, in_offsets)
    _rows(op, "out", out_weight, variables, out_offsets)
    _head(op, head, levels, head_kinds, "out_weight", out_weight.shape[0], variables, out_offsets)
    if head.endswith("mixture") and (in_offsets is not None or in_weight.shape[0] != variables):
        raise RuntimeError(
            f"{op}: in_weight must have one row per variable, {variables}, for a mixture head, "
            f"got shape {list(in_weight.shape)}"
        )
    if head == "per_variable" and in_offsets is None and in_weight.shape[0] != variables:
        raise RuntimeError(
            f"{op}: in_weight must have one row per variable, {variables}, for a per_variable head unless in_offsets "
            f"is given, got shape {list(in_weight.shape)}"
        )
    if activation_scale is not None:
        _shape(op, "activation_scale", activation_scale, "(D)", variables)
        _like(op, "activation_scale", activation_scale, "in_weight", in_weight)
    _draws(op, state, variables, given, known, start, stop, temperature)
    _one_of(op, "activation", activation, ACTIVATIONS)


def _offset_nade_sample(
    state: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    order: Tensor | None,
    given: Tensor | None,
    known: Tensor | None,
    grid: list[int],
    window: list[int],
    shared_output: bool,
    activation: str,
    head: str,
    levels: int,
    seed: int,
    first_index: int,
    start: int,
    stop: int,
    temperature: float,
    *_: object,
) -> None:
    op = "offset_nade_sample"
    if len(grid) != 3 or min(grid) < 1:
        raise RuntimeError(f"{op}: grid must be (rows, columns, channels), all positive, got {grid}")
    if len(window) != 2 or min(window) < 0 or sum(window) == 0:
        raise RuntimeError(
            f"{op}: window must be (rows above, columns to a side), not negative and not both 0, got {window}"
        )
    _, columns, channels = grid
    (up, side), variables = window, math.prod(grid)
    _shape(op, "in_weight", in_weight, "(rows, H)", None, None)
    _dtype(op, "in_weight", in_weight, *FLOATING)
    hidden = in_weight.shape[1]
    _shape(op, "out_weight", out_weight, "(rows, H)", None, hidden)
    _shape(op, "out_bias", out_bias, "(rows of out_weight)", out_weight.shape[0])
    for name, tensor in (("out_weight", out_weight), ("out_bias", out_bias)):
        _like(op, name, tensor, "in_weight", in_weight)
    outputs, rows = channels if shared_output else variables, out_weight.shape[0]
    if rows == 0 or rows % outputs:
        owner = "channel" if shared_output else "variable"
        raise RuntimeError(
            f"{op}: out_weight must have K rows per {owner}, a multiple of {outputs}, got {list(out_weight.shape)}"
        )
    _head(op, head, levels, None, "out_weight", rows, outputs, None, others=())
    inputs = (up * (2 * side + 1) + side) * channels + channels - 1
    values = rows // outputs if head == "categorical" else 1
    _shape(op, "in_weight", in_weight, f"({inputs * values}, H)", inputs * values, hidden)
    reach = (up * columns + side) * channels + channels - 1
    _shape(op, "state", state, f"(B, {reach})", None, reach)
    compute = compute_dtype(in_weight.dtype)
    _dtype(op, "state", state, compute)
    _device(op, "state", state, "in_weight", in_weight)
    if in_bias.dim() == 2:
        _shape(op, "in_bias", in_bias, "(H) or (B, H)", state.shape[0], hidden)
    else:
        _shape(op, "in_bias", in_bias, "(H) or (B, H)", hidden)
    _dtype(op, "in_bias", in_bias, in_weight.dtype, compute)
    _device(op, "in_bias", in_bias, "in_weight", in_weight)
    _indices(op, "order", order, "(D)", variables, in_weight)
    _draws(op, state, variables, given, known, start, stop, temperature)
    _one_of(op, "activation", activation, ACTIVATIONS)


def _masked_linear(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: object) -> None:
    op, activation = "masked_linear", rest[-1]
    if activation is not None:
        _one_of(op, "activation", activation, MLP_ACTIVATIONS)
    _shape(op, "weight", weight, "(O, I)", None, None)
    _dtype(op, "weight", weight, *FLOATING)
    if input.dim() == 0 or input.shape[-1] != weight.shape[1]:
        raise RuntimeError(f"{op}: input must have shape (..., {weight.shape[1]}), got {list(input.shape)}")
    if weight.is_meta or not torch.is_autocast_enabled(weight.device.type):
        _like(op, "input", input, "weight", weight)
    if bias is not None:
        _shape(op, "bias", bias, "(O)", weight.shape[0])
        _like(op, "bias", bias, "weight", weight)


def _masked_linear_grad_input(grad_output: Tensor, weight: Tensor, *_: object) -> None:
    op = "masked_linear_grad_input"
    _shape(op, "weight", weight, "(O, I)", None, None)
    _dtype(op, "weight", weight, *FLOATING)
    if grad_output.dim() == 0 or grad_output.shape[-1] != weight.shape[0]:
        raise RuntimeError(f"{op}: grad_output must have shape (..., {weight.shape[0]}), got {list(grad_output.shape)}")
    if weight.is_meta or not torch.is_autocast_enabled(weight.device.type):
        _like(op, "grad_output", grad_output, "weight", weight)


def _fvsbn_sample(
    state: Tensor,
    weight: Tensor,
    order: Tensor | None,
    offsets: Tensor | None,
    in_offsets: Tensor | None,
    given: Tensor | None,
    known: Tensor | None,
    variables: int,
    head: str,
    levels: int,
    head_kinds: Tensor | None,
    seed: int,
    first_index: int,
    start: int,
    stop: int,
    temperature: float,
    *_: object,
) -> None:
    op = "fvsbn_sample"
    if variables < 1:
        raise RuntimeError(f"{op}: variables must be positive, got {variables}")
    _shape(op, "weight", weight, "(R_in, R_out)", None, None)
    _dtype(op, "weight", weight, *FLOATING)
    in_rows, out_rows = weight.shape
    if offsets is not None:
        _shape(op, "offsets", offsets, "(D + 1)", variables + 1)
        _dtype(op, "offsets", offsets, torch.int64)
        _device(op, "offsets", offsets, "weight", weight)
    elif out_rows == 0 or out_rows % variables:
        raise RuntimeError(
            f"{op}: weight must have a multiple of D = {variables} columns unless offsets is given, "
            f"got shape {list(weight.shape)}"
        )
    _head(op, head, levels, head_kinds, "weight", out_rows, variables, offsets)
    _in_offsets(op, head, in_offsets, variables)
    if in_offsets is None and in_rows != (out_rows if head == "categorical" else variables):
        rule = "category, as many as columns" if head == "categorical" else "variable"
        raise RuntimeError(f"{op}: weight must have one row per {rule}, got shape {list(weight.shape)}")
    _shape(op, "state", state, "(B, R_out)", None, out_rows)
    _dtype(op, "state", state, compute_dtype(weight.dtype))
    _device(op, "state", state, "weight", weight)
    if order is not None:
        _shape(op, "order", order, "(D)", variables)
        _dtype(op, "order", order, torch.int64)
    _draws(op, state, variables, given, known, start, stop, temperature)


def _armlp_sample(
    state: Tensor,
    in_weight: Tensor,
    block_starts: Tensor,
    in_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    order: Tensor | None,
    offsets: Tensor | None,
    in_offsets: Tensor | None,
    given: Tensor | None,
    known: Tensor | None,
    activation: str,
    head: str,
    levels: int,
    head_kinds: Tensor | None,
    seed: int,
    first_index: int,
    start: int,
    stop: int,
    temperature: float,
    *_: object,
) -> None:
    op = "armlp_sample"
    _shape(op, "state", state, "(B, D)", None, None)
    batch, variables = state.shape
    if variables == 0:
        raise RuntimeError(f"{op}: state must have at least one variable, got shape {list(state.shape)}")
    _shape(op, "in_weight", in_weight, "(rows, H)", None, None)
    _dtype(op, "in_weight", in_weight, *FLOATING)
    compute = compute_dtype(in_weight.dtype)
    _dtype(op, "state", state, compute)
    _shape(op, "block_starts", block_starts, "(blocks + 1)", -(-variables // 8) + 1)
    _dtype(op, "block_starts", block_starts, torch.int64)
    hidden = in_weight.shape[1]
    sizes = [variables, hidden] if in_bias.dim() == 2 else [batch, variables, hidden]
    _shape(op, "in_bias", in_bias, "(D, H) or (B, D, H)", *sizes)
    _shape(op, "out_weight", out_weight, "(R_out, H)", None, hidden)
    _like(op, "out_weight", out_weight, "in_weight", in_weight)
    _shape(op, "out_bias", out_bias, "(R_out)", out_weight.shape[0])
    for name, tensor in (("in_bias", in_bias), ("out_bias", out_bias)):
        _dtype(op, name, tensor, in_weight.dtype, compute)
    for name, tensor in (
        ("state", state),
        ("block_starts", block_starts),
        ("in_bias", in_bias),
        ("out_bias", out_bias),
    ):
        _device(op, name, tensor, "in_weight", in_weight)
    _indices(op, "order", order, "(D)", variables, in_weight)
    _indices(op, "offsets", offsets, "(D + 1)", variables + 1, in_weight)
    if offsets is None and (len(out_weight) == 0 or len(out_weight) % variables):
        raise RuntimeError(
            f"{op}: out_weight must have a multiple of D = {variables} rows unless offsets is given, "
            f"got shape {list(out_weight.shape)}"
        )
    _head(op, head, levels, head_kinds, "out_weight", out_weight.shape[0], variables, offsets)
    _in_offsets(op, head, in_offsets, variables)
    _draws(op, state, variables, given, known, start, stop, temperature)
    _one_of(op, "activation", activation, ACTIVATIONS)


def _masked_mlp_sample(
    state: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    extents: list[Tensor],
    unit_ends: list[Tensor],
    program: list[int],
    order: Tensor | None,
    in_offsets: Tensor | None,
    out_offsets: Tensor | None,
    given: Tensor | None,
    known: Tensor | None,
    variables: int,
    activation: str,
    head: str,
    levels: int,
    head_kinds: Tensor | None,
    seed: int,
    first_index: int,
    start: int,
    stop: int,
    temperature: float,
    *_: object,
) -> None:
    op = "masked_mlp_sample"
    if variables < 1:
        raise RuntimeError(f"{op}: variables must be positive, got {variables}")
    steps = _program(op, program)
    reads = [[source for source in (first, second) if source >= 0] for first, second, _, _ in steps]
    terms, layers = sum(map(len, reads)), len(steps)
    for name, tensors, of, count in (
        ("weights", weights, "term of program", terms),
        ("extents", extents, "term of program", terms),
        ("biases", biases, "layer", layers),
        ("unit_ends", unit_ends, "layer but the last", layers - 1),
    ):
        if len(tensors) != count:
            raise RuntimeError(f"{op}: {name} must hold one tensor per {of}, {count}, got {len(tensors)}")
    widths, term = [weights[0].shape[1]], 0
    for k, (sources, (_, _, add, _)) in enumerate(zip(reads, steps, strict=True)):
        units = weights[term].shape[0] if sources else widths[add]
        for source in sources:
            _shape(op, f"weights[{term}]", weights[term], f"({units}, {widths[source]})", units, widths[source])
            _shape(op, f"extents[{term}]", extents[term], f"({units})", units)
            _like(op, f"weights[{term}]", weights[term], "weights[0]", weights[0])
            term += 1
        if add >= 0 and widths[add] != units:
            raise RuntimeError(
                f"{op}: layer {k} of program must add a value of as many units, {units}, got {widths[add]}"
            )
        if biases[k].dim() == 2:
            _shape(op, f"biases[{k}]", biases[k], f"({units}) or (B, {units})", state.shape[0], units)
        elif biases[k].shape != (0,):
            _shape(op, f"biases[{k}]", biases[k], f"({units})", units)
        if k < layers - 1:
            _shape(op, f"unit_ends[{k}]", unit_ends[k], "(D)", variables)
        widths.append(units)
    in_rows, out_rows = widths[0], widths[-1]
    _indices(op, "in_offsets", in_offsets, "(D + 1)", variables + 1, weights[0])
    _indices(op, "out_offsets", out_offsets, "(D + 1)", variables + 1, weights[0])
    for name, offsets, rows, of in (
        ("in_offsets", in_offsets, in_rows, "columns of weights[0]"),
        ("out_offsets", out_offsets, out_rows, "units of the last layer"),
    ):
        if offsets is None and (rows == 0 or rows % variables):
            raise RuntimeError(f"{op}: {of} must be a multiple of D = {variables} unless {name} is given, got {rows}")
    _head(op, head, levels, head_kinds, "the last layer", out_rows, variables, out_offsets)
    if head not in ("categorical", "per_variable") and (in_offsets is not None or in_rows != variables):
        raise RuntimeError(
            f"{op}: weights[0] must have one column per variable, {variables}, but for a categorical or "
            f"per_variable head, got shape {list(weights[0].shape)}"
        )
    features = sum(widths[:-1])
    _shape(op, "state", state, f"(B, R_in + units of all layers but the last) = (B, {features})", None, features)
    _dtype(op, "state", state, compute_dtype(weights[0].dtype))
    _indices(op, "order", order, "(D)", variables, weights[0])
    _draws(op, state, variables, given, known, start, stop, temperature)
    _one_of(op, "activation", activation, MLP_ACTIVATIONS)


def _program(op: str, program: list[int]) -> list[list[int]]:
    """The four numbers of each layer of a masked_mlp_sample."""
    if not program or len(program) % 4 or len(program) // 4 > 33:
        raise RuntimeError(f"{op}: program must have 4 numbers for each of 1 to 33 layers, got {len(program)} numbers")
    steps = [program[i : i + 4] for i in range(0, len(program), 4)]
    for layer, (first, second, add, activated) in enumerate(steps):
        for j, value in enumerate((first, second, add)):
            if not -1 <= value <= layer:
                raise RuntimeError(
                    f"{op}: program[{4 * layer + j}] must be -1 or a value before layer {layer}, "
                    f"0 ... {layer}, got {value}"
                )
        if activated not in (0, 1):
            raise RuntimeError(f"{op}: program[{4 * layer + 3}] must be 0 or 1, got {activated}")
        if first < 0 and (second >= 0 or add < 0 or layer == 0):
            or_none = ", or no term and a value added" if layer else ""
            raise RuntimeError(
                f"{op}: layer {layer} of program must have a first term{or_none}, got {[first, second, add]}"
            )
    return steps


CHECKS = {
    "armlp_sample": _armlp_sample,
    "fvsbn_sample": _fvsbn_sample,
    "head_log_prob": _head_log_prob,
    "nade": _nade,
    "nade_log_prob": _nade_log_prob,
    "nade_sample": _nade_sample,
    "offset_nade_sample": _offset_nade_sample,
    "masked_linear": _masked_linear,
    "masked_linear_grad_input": _masked_linear_grad_input,
    "masked_mlp_sample": _masked_mlp_sample,
}
