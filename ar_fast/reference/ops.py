"""All ops, each with the arguments of its schema."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .draws import draw, transformed
from .heads import bounds_of, chosen, compute_dtype, head_log_prob, head_of
from .transforms import univariate_transform

ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}
MLP_ACTIVATIONS = {
    **ACTIVATIONS,
    "elu": F.elu,
    "softplus": F.softplus,
    "silu": F.silu,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
}


# The default of lists, which nothing is added to.
_NONE: Any = ()


def _rows_by_position(rows: int, order: Tensor, offsets: Tensor | None) -> tuple[Tensor, list[int]]:
    """Weight rows in the order of position, and the bounds of each position's rows."""
    variables = order.numel()
    if offsets is None:
        index = torch.arange(rows, device=order.device).reshape(variables, -1)[order]
        return index.flatten(), [rows // variables] * variables
    bounds = offsets.tolist()
    ranges = [torch.arange(bounds[v], bounds[v + 1], device=order.device) for v in order.tolist()]
    return torch.cat(ranges), [r.numel() for r in ranges]


def _added(rows: Tensor, x: Tensor, gathers: bool) -> Tensor:
    """What values (B,) of a variable with input rows (rows, H) add: the row of a category, or the one row scaled."""
    if not gathers:
        return x[:, None].to(rows.dtype) * rows
    row, factor = chosen(x, len(rows))
    return rows[row] * factor[:, None].to(rows.dtype)


def nade(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    order: Tensor | None = None,
    in_offsets: Tensor | None = None,
    out_offsets: Tensor | None = None,
    activation_scale: Tensor | None = None,
    activation: str = "sigmoid",
    algorithm: str = "auto",
) -> Tensor:
    """The parameters of every conditional, (B, R_out), by a loop over positions. See ``functional.nade``."""
    variables, dtype = x.shape[1], compute_dtype(in_weight.dtype)
    if order is None:
        order = torch.arange(variables, device=x.device)
    if activation_scale is None:
        activation_scale = torch.ones(variables, device=x.device)
    categories = not x.is_floating_point() and (in_offsets is not None or in_weight.shape[0] != variables)
    in_index, in_counts = _rows_by_position(in_weight.shape[0], order, in_offsets)
    out_index, out_counts = _rows_by_position(out_weight.shape[0], order, out_offsets)
    x = x[:, order]
    in_rows = in_weight.to(dtype)[in_index].split(in_counts)
    out_rows = out_weight.to(dtype)[out_index].split(out_counts)
    out_biases = out_bias.to(dtype)[out_index].split(out_counts)
    scale = activation_scale.to(dtype)[order]

    state = in_bias.to(dtype).expand(x.shape[0], in_weight.shape[1])
    parameters = []
    for p in range(variables):
        hidden = ACTIVATIONS[activation](scale[p] * state)
        with torch.autocast(x.device.type, enabled=False):
            parameters.append(F.linear(hidden, out_rows[p], out_biases[p]))
        state = state + _added(in_rows[p], x[:, p], categories or in_counts[p] > 1)
    return torch.cat(parameters, 1)[:, out_index.argsort()]


def nade_log_prob(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    order: Tensor | None = None,
    in_offsets: Tensor | None = None,
    out_offsets: Tensor | None = None,
    activation_scale: Tensor | None = None,
    activation: str = "sigmoid",
    head: str = "bernoulli",
    levels: int = 0,
    head_kinds: Tensor | None = None,
    per_variable: bool = False,
    algorithm: str = "auto",
) -> Tensor:
    """The log-likelihood in nats, (B,) or (B, D). See ``functional.nade_log_prob``."""
    parameters = nade(
        x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets, activation_scale, activation
    )
    log_prob = head_log_prob(parameters, x, out_offsets, head, levels, head_kinds)
    return log_prob if per_variable else log_prob.double().sum(1).to(log_prob.dtype)


def nade_sample(
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
    algorithm: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws positions start ... stop-1. Returns values (B, stop - start), log_prob (B,) and the state after them."""
    dtype = compute_dtype(in_weight.dtype)
    if order is None:
        order = torch.arange(variables, device=state.device)
    categories = head_kinds is None and (in_offsets is not None or in_weight.shape[0] != variables)
    in_index, in_counts = _rows_by_position(in_weight.shape[0], order, in_offsets)
    out_index, out_counts = _rows_by_position(out_weight.shape[0], order, out_offsets)
    in_rows = in_weight.to(dtype)[in_index].split(in_counts)
    out_rows = out_weight.to(dtype)[out_index].split(out_counts)
    out_biases = out_bias.to(dtype)[out_index].split(out_counts)
    log_prob = torch.zeros(state.shape[0], dtype=torch.float64, device=state.device)
    values = []
    for p in range(start, stop):
        i = order[p]
        scaled = state if activation_scale is None else activation_scale[i].to(dtype) * state
        parameters = ACTIVATIONS[activation](scaled) @ out_rows[p].T + out_biases[p]
        own = head_of(head, levels, head_kinds, int(i))
        value, value_log_prob = draw(parameters, i, seed, first_index, temperature, given, known, *own)
        log_prob = log_prob + value_log_prob
        state = state + _added(in_rows[p], value, categories or in_counts[p] > 1)
        values.append(value)
    drawn = torch.stack(values, 1) if values else state.new_empty(state.shape[0], 0)
    return drawn, log_prob, state


def deep_nade_sample(
    state: Tensor,
    in_weight: Tensor,
    mask_weight: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    out_weight: Tensor,
    out_bias: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws positions start ... stop-1. Returns values (B, stop - start), log_prob (B,) and the state after them."""
    dtype, f = compute_dtype(in_weight.dtype), ACTIVATIONS[activation]
    if order is None:
        order = torch.arange(variables, device=state.device)
    in_index, in_counts = _rows_by_position(in_weight.shape[0], order, in_offsets)
    out_index, out_counts = _rows_by_position(out_weight.shape[0], order, out_offsets)
    in_rows = in_weight.to(dtype)[in_index].split(in_counts)
    out_rows = out_weight.to(dtype)[out_index].split(out_counts)
    out_biases = out_bias.to(dtype)[out_index].split(out_counts)
    log_prob = torch.zeros(state.shape[0], dtype=torch.float64, device=state.device)
    values = []
    for p in range(start, stop):
        i = order[p]
        hidden = f(state)
        for weight, bias in zip(weights, biases, strict=True):
            hidden = f(hidden @ weight.to(dtype).T + bias.to(dtype))
        parameters = hidden @ out_rows[p].T + out_biases[p]
        own = head_of(head, levels, head_kinds, int(i))
        value, value_log_prob = draw(parameters, i, seed, first_index, temperature, given, known, *own)
        log_prob = log_prob + value_log_prob
        # A variable that is known is in the state from the start.
        added = _added(in_rows[p], value, head == "categorical" or in_counts[p] > 1) + mask_weight[i].to(dtype)
        state = state + (added if known is None else torch.where(known[:, i, None], 0.0, added))
        values.append(value)
    drawn = torch.stack(values, 1) if values else state.new_empty(state.shape[0], 0)
    return drawn, log_prob, state


def offset_taps(window: tuple[int, int] | list[int]) -> list[tuple[int, int]]:
    """(rows down, columns right) of each tap of a window (up, side), row by row: all are above or to the left."""
    up, side = window
    above = [(row, column) for row in range(-up, 0) for column in range(-side, side + 1)]
    return above + [(0, column) for column in range(-side, 0)]


def offset_inputs(
    position: int, grid: tuple[int, int, int] | list[int], window: tuple[int, int] | list[int]
) -> list[tuple[int, int]]:
    """What the variable at a position of an offset NADE sees: (position, number of the input in in_weight) pairs."""
    _, columns, channels = grid
    pixel, channel = divmod(position, channels)
    row, column = divmod(pixel, columns)
    taps = offset_taps(window)
    inputs = [
        (((row + down) * columns + column + right) * channels + s, tap * channels + s)
        for tap, (down, right) in enumerate(taps)
        if row + down >= 0 and 0 <= column + right < columns
        for s in range(channels)
    ]
    return inputs + [(pixel * channels + s, len(taps) * channels + s) for s in range(channel)]


def offset_nade_sample(
    state: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
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
    algorithm: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws positions start ... stop-1. Returns values (B, stop - start), log_prob (B,) and the state after them."""
    dtype, channels, reach = compute_dtype(in_weight.dtype), grid[2], state.shape[1]
    f = ACTIVATIONS[activation]
    if order is None:
        order = torch.arange(math.prod(grid), device=state.device)
    count = out_weight.shape[0] // (channels if shared_output else math.prod(grid))
    # (input, value, H)
    weight = in_weight.to(dtype).unflatten(0, (-1, count if head == "categorical" else 1))
    out_weight, out_bias = out_weight.to(dtype), out_bias.to(dtype)
    values = [state[:, i] for i in range(reach)]  # values[reach - start + p] is the value at position p
    log_prob = torch.zeros(state.shape[0], dtype=torch.float64, device=state.device)
    for p in range(start, stop):
        hidden = in_bias.to(dtype).expand(state.shape[0], -1)
        for position, index in offset_inputs(p, grid, window):
            x = values[reach - start + position]
            hidden = hidden + _added(weight[index], x, head == "categorical")
        hidden = f(hidden)
        for layer, bias in zip(weights, biases, strict=True):
            hidden = f(F.linear(hidden, layer.to(dtype), bias.to(dtype)))
        first = (p % channels if shared_output else int(order[p])) * count
        rows = slice(first, first + count)
        parameters = F.linear(hidden, out_weight[rows], out_bias[rows])
        value, value_log_prob = draw(parameters, order[p], seed, first_index, temperature, given, known, head, levels)
        values.append(value)
        log_prob = log_prob + value_log_prob
    history = torch.stack(values, 1)
    return history[:, reach:].clone(), log_prob, history[:, stop - start :].clone()


def mask_from_plan(
    shape: tuple[int, int] | torch.Size,
    extents: Tensor | None,
    rows: Tensor | None,
    columns: Tensor | None,
    tiles: Tensor | None,
    dense: Tensor | None,
) -> Tensor:
    """The (O, I) bool mask that a plan of ``Mask`` describes."""
    if extents is None:
        return dense.bool()
    rank = torch.arange(shape[1], device=extents.device)
    if columns is not None:
        rank = columns.long().argsort()
    return rank < extents[:, None]


def masked_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    extents: Tensor | None,
    rows: Tensor | None,
    columns: Tensor | None,
    tiles: Tensor | None,
    dense: Tensor | None,
    algorithm: str = "auto",
    activation: str | None = None,
    steps: list[int] = _NONE,
) -> Tensor:
    """f(input (weight * mask)^T + bias). See ``functional.masked_linear``."""
    mask = mask_from_plan(weight.shape, extents, rows, columns, tiles, dense)
    sums = _masked_product(input, weight, mask, bias)
    return sums if activation is None else MLP_ACTIVATIONS[activation](sums)


def _masked_product(input: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """input (..., I), weight and mask (O, I), bias (O) -> (..., O). A masked weight has no effect and does not see its
    input, even if that is NaN or infinity."""
    # torch.where instead of a product, since 0 times NaN is NaN.
    allowed = torch.where(mask, weight, 0.0)
    sums = F.linear(input, allowed, bias)
    if _all_finite(input):
        return sums
    # This is the definition. It takes O times the memory of input.
    seen = (torch.where(mask, input.unsqueeze(-2), 0.0) * allowed).sum(-1, dtype=compute_dtype(weight.dtype))
    return (seen if bias is None else seen + bias).to(sums.dtype)


def _all_finite(tensor: Tensor) -> bool:
    """Whether all values are finite. True also if they cannot be read: while compiling, on the meta device, and under
    vmap."""
    if torch.compiler.is_compiling():
        return True
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return tensor.is_meta or bool(tensor.isfinite().all())


def masked_linear_grad_input(
    grad_output: Tensor,
    weight: Tensor,
    extents: Tensor | None,
    rows: Tensor | None,
    columns: Tensor | None,
    tiles: Tensor | None,
    dense: Tensor | None,
    algorithm: str = "auto",
    steps: list[int] = _NONE,
) -> Tensor:
    """grad_output (weight * mask). See ``functional.masked_linear_grad_input``."""
    mask = mask_from_plan(weight.shape, extents, rows, columns, tiles, dense)
    return _masked_product(grad_output, weight.T, mask.T)


def fvsbn_sample(
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
    algorithm: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws positions start ... stop-1 by adding each value into the parameters of those after it."""
    dtype = compute_dtype(weight.dtype)
    if order is None:
        order = torch.arange(variables, device=state.device)
    if offsets is None:
        offsets = torch.arange(variables + 1) * (weight.shape[1] // variables)
    first = offsets.tolist()
    rows = first if head == "categorical" else bounds_of(in_offsets, variables, variables)
    log_prob = torch.zeros(state.shape[0], dtype=torch.float64, device=state.device)
    values = []
    for p in range(start, stop):
        place = variables - 1 - p
        column, end = first[place], first[place + 1]
        parameters = state[:, column:end]
        own = head_of(head, levels, head_kinds, place)
        value, value_log_prob = draw(parameters, order[p], seed, first_index, temperature, given, known, *own)
        log_prob = log_prob + value_log_prob
        # Columns 0 ... column - 1 are the parameters of the positions after this one.
        added = _added(weight[rows[place] : rows[place + 1], :column].to(dtype), value, own[0] == "categorical")
        state = torch.cat([state[:, :column] + added, state[:, column:]], 1)
        values.append(value)
    drawn = torch.stack(values, 1) if values else state.new_empty(state.shape[0], 0)
    return drawn, log_prob, state


def armlp_sample(
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
    algorithm: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws positions start ... stop-1 with a separate network for each. Blocks of 8 networks share a matrix."""
    dtype, variables = compute_dtype(in_weight.dtype), state.shape[1]
    if order is None:
        order = torch.arange(variables, device=state.device)
    if offsets is None:
        offsets = torch.arange(variables + 1) * (out_weight.shape[0] // variables)
    first, starts = offsets.tolist(), block_starts.tolist()
    rows = first if head == "categorical" else bounds_of(in_offsets, variables, variables)
    own_heads = [head_of(head, levels, head_kinds, p) for p in range(variables)]
    log_prob = torch.zeros(state.shape[0], dtype=torch.float64, device=state.device)
    state = state.clone()
    for p in range(start, stop):
        block, networks = p // 8, min(8, variables - p // 8 * 8)
        weight = in_weight[starts[block] : starts[block + 1]].unflatten(0, (-1, networks))[:, p % 8].to(dtype)
        pre_activation = in_bias[..., p, :].to(dtype).expand(state.shape[0], -1)
        for j in range(p):
            own_rows = weight[rows[j] : rows[j + 1]]
            pre_activation = pre_activation + _added(own_rows, state[:, j], own_heads[j][0] == "categorical")
        hidden = ACTIVATIONS[activation](pre_activation)
        own = slice(first[p], first[p + 1])
        parameters = hidden @ out_weight[own].to(dtype).T + out_bias[own].to(dtype)
        value, value_log_prob = draw(parameters, order[p], seed, first_index, temperature, given, known, *own_heads[p])
        log_prob = log_prob + value_log_prob
        state[:, p] = value
    return state[:, start:stop].clone(), log_prob, state


def _by_unit(
    weight: Tensor, in_offsets: Tensor | None, out_offsets: Tensor | None, variables: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Converts a weight by input, (R_in, R_out) from the last position to the first, to one by output and position;
    also returns the extents."""
    columns, rows = (
        torch.tensor(bounds_of(offsets, variables, size))
        for offsets, size in zip((in_offsets, out_offsets), weight.shape, strict=True)
    )
    for dimension, ends in enumerate((columns.tolist(), rows.tolist())):
        index = torch.cat([torch.arange(ends[-1] - ends[p + 1], ends[-1] - ends[p]) for p in range(variables)])
        weight = weight.index_select(dimension, index.to(weight.device))
    extents = columns[:-1].repeat_interleave(rows.diff())
    return [weight.T], [extents.to(weight.device, torch.int32)]


def masked_mlp_sample(
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
    algorithm: str = "auto",
    by_input: bool = False,
    constants: list[float] = _NONE,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws positions start ... stop-1 of a MADE; each hidden unit is computed once, when its last input is known."""
    dtype = compute_dtype(weights[0].dtype)
    if by_input:
        weights, extents = _by_unit(weights[0], in_offsets, out_offsets, variables)
    if order is None:
        order = torch.arange(variables, device=state.device)
    steps = [program[i : i + 4] for i in range(0, len(program), 4)]
    terms = iter(
        torch.where(torch.arange(weight.shape[1], device=weight.device) < extent[:, None], weight.to(dtype), 0.0)
        for weight, extent in zip(weights, extents, strict=True)
    )
    # The values that each layer reads, with their weights; the width of each value.
    reads = [[(source, next(terms)) for source in step[:2] if source >= 0] for step in steps]
    widths = [weights[0].shape[1]]
    for of_layer, step in zip(reads, steps, strict=True):
        widths.append(of_layer[0][1].shape[0] if of_layer else widths[step[2]])
    columns, rows = bounds_of(in_offsets, variables, widths[0]), bounds_of(out_offsets, variables, widths[-1])
    ends = [*([0, *end.tolist()] for end in unit_ends), rows]
    layers = [layer.clone() for layer in state.split(widths[:-1], 1)]
    log_prob = torch.zeros(state.shape[0], dtype=torch.float64, device=state.device)
    values = []
    for p in range(start, stop):
        for k, (of_layer, (_, _, add, activated)) in enumerate(zip(reads, steps, strict=True)):
            units = slice(ends[k][p], ends[k][p + 1])
            total = layers[0].new_zeros(state.shape[0], units.stop - units.start)
            for source, weight in of_layer:
                total = total + layers[source] @ weight[units].T
            if biases[k].shape != (0,):
                total = total + biases[k].to(dtype)[..., units]
            if add >= 0:
                total = total + layers[add][:, units]
            if activated:
                total = MLP_ACTIVATIONS[activation](total)
            if k < len(steps) - 1:
                layers[k + 1][:, units] = total
        if head.startswith(("affine_", "spline_")):
            value, value_log_prob = transformed(total, order[p], given, known, head, constants)
        else:
            own_head = head_of(head, levels, head_kinds, p)
            value, value_log_prob = draw(total, order[p], seed, first_index, temperature, given, known, *own_head)
        log_prob = log_prob + value_log_prob
        values.append(value)
        count = columns[p + 1] - columns[p]
        one_hot = torch.eye(count, dtype=dtype, device=value.device)
        scales = count == 1 and not (by_input and head == "categorical")
        layers[0][:, columns[p] : columns[p + 1]] = value[:, None] if scales else _added(one_hot, value, True)
    drawn = torch.stack(values, 1) if values else state.new_empty(state.shape[0], 0)
    return drawn, log_prob, torch.cat(layers, 1)


def masked_mlp_flow(
    x: Tensor,
    context: Tensor | None,
    weights: list[Tensor],
    masks: list[Tensor],
    biases: list[Tensor],
    program: list[int],
    orders: list[Tensor],
    context_columns: str,
    activation: str,
    transform: str,
    constants: list[float],
    by_parameter: bool = False,
    scale_first: bool = False,
) -> tuple[Tensor, Tensor]:
    layers: list[list[int]] = [program[start : start + 4] for start in range(0, len(program), 4)]
    log_det: Any = 0.0
    terms = list(zip(weights, masks, biases, strict=True))[::-1]
    order_of = iter(orders)
    while terms:
        columns = {"none": [x], "before": [context, x], "after": [x, context]}[context_columns]
        values = [torch.cat(columns, 1)]
        for *sources, add, activated in layers:
            z: Any = values[add] if add >= 0 else 0.0
            for source in sources:
                if source != -1:
                    weight, mask, bias = terms.pop()
                    weight = weight if mask.shape == (0,) else weight * mask
                    z = z + (context if source == -2 else values[source]) @ weight.T
                    z = z if bias.shape == (0,) else z + bias
            values.append(MLP_ACTIVATIONS[activation](z) if activated else z)
        x, own = univariate_transform(x, values[-1], transform, constants, by_parameter, scale_first)
        log_det = log_det + own
        order = next(order_of, x.new_empty(0))
        x = x if order.shape == (0,) else x[:, order]
    return x, log_det
