"""Plain-torch twins of every op and model: slow, short, differentiable, on any device.

Each op here has the arguments of its schema in csrc/ops/library.cpp and is what the kernels are tested against; the
models load the state_dict of ``ar_fast.models`` and can be read as the definition of what those compute. The twins
run under ``torch.func`` transforms and under ``AR_FAST_BACKEND=reference``.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "ReferenceARMLP",
    "ReferenceDeepNADE",
    "ReferenceFVSBN",
    "ReferenceMADE",
    "ReferenceNADE",
    "ReferenceOffsetNADE",
    "armlp_sample",
    "fvsbn_sample",
    "head_log_prob",
    "mask_from_plan",
    "masked_linear",
    "masked_linear_grad_input",
    "masked_mlp_sample",
    "nade",
    "nade_log_prob",
    "nade_sample",
    "offset_nade_sample",
    "philox_uniform",
]

ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}
MLP_ACTIVATIONS = {
    **ACTIVATIONS,
    "elu": F.elu,
    "softplus": F.softplus,
    "silu": F.silu,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
}


def compute_dtype(storage: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic, of parameters and of log-probabilities: float64 for float64, else float32."""
    return torch.float64 if storage == torch.float64 else torch.float32


def philox_uniform(seed: int, sample: Tensor, variable: Tensor, slot: Tensor | int = 0) -> Tensor:
    """Uniform numbers in (0, 1), float64, of Philox4x32-10 with key ``seed`` and counter (sample, variable, slot).

    ``sample``, ``variable`` and ``slot`` are int64 and broadcast. Equal to ``philox_uniform`` of csrc/kernels/philox.h,
    bit for bit. Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    word = 0xFFFFFFFF
    key0, key1 = seed & word, (seed >> 32) & word
    slot = torch.as_tensor(slot, device=sample.device)
    sample, variable, slot = torch.broadcast_tensors(sample, variable, slot)
    c0, c1, c2, c3 = sample & word, (sample >> 32) & word, variable & word, slot
    for _ in range(10):
        # int64 products wrap modulo 2^64, which keeps all 64 bits of the unsigned product.
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            ((product1 >> 32) & word) ^ c1 ^ key0,
            product1 & word,
            ((product0 >> 32) & word) ^ c3 ^ key1,
            product0 & word,
        )
        key0, key1 = (key0 + 0x9E3779B9) & word, (key1 + 0xBB67AE85) & word
    return (((c0 << 20) | (c1 >> 12)).double() + 0.5) * 2.0**-52


def _rows_by_position(rows: int, order: Tensor, offsets: Tensor | None) -> tuple[Tensor, list[int]]:
    """Weight rows in the order of position, and how many of them each position owns."""
    variables = order.numel()
    if offsets is None:
        index = torch.arange(rows, device=order.device).reshape(variables, -1)[order]
        return index.flatten(), [rows // variables] * variables
    bounds = offsets.tolist()
    ranges = [torch.arange(bounds[v], bounds[v + 1], device=order.device) for v in order.tolist()]
    return torch.cat(ranges), [r.numel() for r in ranges]


def _added(rows: Tensor, x: Tensor, gathers: bool) -> Tensor:
    """What values (B,) of a variable with input rows (rows, H) add: the row of a category, or the one row scaled."""
    return rows[x.long()] if gathers else x[:, None].to(rows.dtype) * rows


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


# Heads: what a variable's parameters (..., K) mean. Log-scales are cut off below, with no gradient there; distances in
# units of the scale are cut off far out, where a square would overflow.
MINIMUM_LOG_SCALE = -7.0
LARGEST_DISTANCE = 1e15
HEADS = ("bernoulli", "categorical", "gaussian_mixture", "logistic_mixture")


def head_of(head: str, levels: int, head_kinds: Tensor | None, index: int) -> tuple[str, int]:
    """The head of one variable and its levels; head_kinds (D, 2) holds them, by their numbers in HEADS."""
    if head_kinds is None:
        return head, levels
    kind, levels = head_kinds[index].tolist()
    return HEADS[kind], levels


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    return x.to(logits.dtype) * logits - F.softplus(logits)


def categorical_log_prob(parameters: Tensor, x: Tensor) -> Tensor:
    return parameters.log_softmax(-1).gather(-1, x.long().unsqueeze(-1)).squeeze(-1)


def mixture_parameters(parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(..., 3 K) -> logits, means and log-scales, (..., K) each."""
    logits, means, log_scales = parameters.unflatten(-1, (3, -1)).unbind(-2)
    return logits, means, log_scales.clamp(min=MINIMUM_LOG_SCALE)


def gaussian_mixture_log_prob(parameters: Tensor, x: Tensor) -> Tensor:
    logits, means, log_scales = mixture_parameters(parameters)
    z = ((x.unsqueeze(-1) - means) * (-log_scales).exp()).clamp(-LARGEST_DISTANCE, LARGEST_DISTANCE)
    log_density = -0.5 * z * z - log_scales - 0.5 * math.log(2 * math.pi)
    return (logits.log_softmax(-1) + log_density).logsumexp(-1)


def logistic_mixture_log_prob(parameters: Tensor, x: Tensor, levels: int) -> Tensor:
    """The probability of the bin around x, half a step to each side; F(a) - F(b) = F(a) F(-b) (1 - e^(b-a))."""
    logits, means, log_scales = mixture_parameters(parameters)
    half, x = 1 / (levels - 1), x.unsqueeze(-1)
    inverse = (-log_scales).exp()
    a = ((x + half - means) * inverse).clamp(-LARGEST_DISTANCE, LARGEST_DISTANCE)
    b = ((x - half - means) * inverse).clamp(-LARGEST_DISTANCE, LARGEST_DISTANCE)
    width = 2 * half * inverse
    log_width = math.log(2 * half) - log_scales
    log_mass = torch.where(width < 1e-4, log_width - width / 2, (-torch.expm1(-width.clamp(min=1e-4))).log())
    inside = F.logsigmoid(a) + F.logsigmoid(-b) + log_mass
    log_probability = torch.where(x < half - 1, F.logsigmoid(a), torch.where(x > 1 - half, F.logsigmoid(-b), inside))
    return (logits.log_softmax(-1) + log_probability).logsumexp(-1)


def _head_log_prob(parameters: Tensor, x: Tensor, head: str, levels: int) -> Tensor:
    """parameters (..., K), x (...)."""
    if head == "bernoulli":
        return bernoulli_log_prob(parameters.squeeze(-1), x)
    if head == "categorical":
        return categorical_log_prob(parameters, x)
    if head == "gaussian_mixture":
        return gaussian_mixture_log_prob(parameters, x)
    return logistic_mixture_log_prob(parameters, x, levels)


def head_log_prob(
    parameters: Tensor,
    x: Tensor,
    offsets: Tensor | None,
    head: str,
    levels: int,
    head_kinds: Tensor | None = None,
) -> Tensor:
    """log p of each variable, (B, D). See ``functional.head_log_prob``."""
    x = x.to(parameters.dtype)
    if offsets is None and head_kinds is None:
        return _head_log_prob(parameters.unflatten(1, (x.shape[1], -1)), x, head, levels)
    bounds = _bounds(offsets, x.shape[1], parameters.shape[1])
    own = parameters.tensor_split(bounds[1:-1], dim=1)
    terms = [_head_log_prob(part, x[:, i], *head_of(head, levels, head_kinds, i)) for i, part in enumerate(own)]
    return torch.stack(terms, 1)


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


def _draw_category(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """The first category whose running sum of probabilities exceeds the uniform number."""
    weights = (logits / temperature - logits.amax(-1, keepdim=True) / temperature).exp().double().cumsum(-1)
    return (weights > uniform.unsqueeze(-1) * weights[..., -1:]).int().argmax(-1)


def head_draw(
    parameters: Tensor, seed: int, sample: Tensor, variable: Tensor, head: str, levels: int, temperature: float
) -> Tensor:
    """One draw of a variable from parameters (..., K), by the uniform numbers of its counters; csrc/kernels/head.h."""
    slots = {"bernoulli": 1, "categorical": 1, "logistic_mixture": 2, "gaussian_mixture": 3}[head]
    slot = torch.arange(slots, device=sample.device).unflatten(0, (-1, *[1] * sample.dim()))
    uniform = philox_uniform(seed, sample, variable, slot)
    if head == "bernoulli":
        return (uniform[0] < torch.sigmoid(parameters.squeeze(-1) / temperature).double()).to(parameters.dtype)
    if head == "categorical":
        return _draw_category(parameters, uniform[0], temperature).to(parameters.dtype)
    logits, means, log_scales = mixture_parameters(parameters)
    component = _draw_category(logits, uniform[0], temperature).unsqueeze(-1)
    mean = means.gather(-1, component).squeeze(-1).double()
    scale = log_scales.gather(-1, component).squeeze(-1).double().exp()
    if head == "gaussian_mixture":
        normal = (-2 * uniform[1].log()).sqrt() * (2 * math.pi * uniform[2]).cos()
        return (mean + scale * temperature**0.5 * normal).to(parameters.dtype)
    value = mean + scale * temperature * (uniform[1].log() - (-uniform[1]).log1p())
    level = ((value + 1) / 2 * (levels - 1)).round().clamp(0, levels - 1)
    return (2 * level / (levels - 1) - 1).to(parameters.dtype)


def _draw(
    parameters: Tensor,
    variable: Tensor,
    seed: int,
    first_index: int,
    temperature: float,
    given: Tensor | None,
    known: Tensor | None,
    head: str = "bernoulli",
    levels: int = 0,
) -> tuple[Tensor, Tensor]:
    """One variable of every row: its value (B,), and its log-probability (B,) float64, 0 where known."""
    if parameters.shape[-1] == 0 and given is not None:  # a variable without parameters is known
        return given.index_select(1, variable.view(1))[:, 0], parameters.new_zeros(len(parameters), dtype=torch.float64)
    sample = torch.arange(parameters.shape[0], device=parameters.device) + first_index
    value = head_draw(parameters, seed, sample, variable, head, levels, temperature)
    if given is None or known is None:
        return value, _head_log_prob(parameters, value, head, levels).double()
    is_known = known.index_select(1, variable.view(1))[:, 0].bool()
    log_prob = _head_log_prob(parameters, value, head, levels).double().masked_fill(is_known, 0.0)
    return torch.where(is_known, given.index_select(1, variable.view(1))[:, 0].to(value.dtype), value), log_prob


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
        value, value_log_prob = _draw(parameters, i, seed, first_index, temperature, given, known, *own)
        log_prob = log_prob + value_log_prob
        state = state + _added(in_rows[p], value, categories or in_counts[p] > 1)
        values.append(value)
    drawn = torch.stack(values, 1) if values else state.new_empty(state.shape[0], 0)
    return drawn, log_prob, state


def offset_taps(window: tuple[int, int] | list[int]) -> list[tuple[int, int]]:
    """(rows down, columns right) of each tap of a window (up, side), row by row: all negative or to the left."""
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
    if order is None:
        order = torch.arange(math.prod(grid), device=state.device)
    count = out_weight.shape[0] // (channels if shared_output else math.prod(grid))
    # (input, value, H)
    weight = in_weight.to(dtype).unflatten(0, (-1, count if head == "categorical" else 1))
    out_weight, out_bias = out_weight.to(dtype), out_bias.to(dtype)
    values = [state[:, i] for i in range(reach)]  # values[reach - start + p] is that at position p
    log_prob = torch.zeros(state.shape[0], dtype=torch.float64, device=state.device)
    for p in range(start, stop):
        hidden = in_bias.to(dtype).expand(state.shape[0], -1)
        for position, index in offset_inputs(p, grid, window):
            x = values[reach - start + position]
            hidden = hidden + (weight[index, x.long()] if head == "categorical" else x[:, None] * weight[index])
        first = (p % channels if shared_output else int(order[p])) * count
        rows = slice(first, first + count)
        parameters = F.linear(ACTIVATIONS[activation](hidden), out_weight[rows], out_bias[rows])
        value, value_log_prob = _draw(parameters, order[p], seed, first_index, temperature, given, known, head, levels)
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
    """The (O, I) bool mask that a plan of ``Mask`` stands for."""
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
) -> Tensor:
    """f(input (weight * mask)^T + bias). See ``functional.masked_linear``."""
    mask = mask_from_plan(weight.shape, extents, rows, columns, tiles, dense)
    # where, not a product: a masked NaN must have no effect.
    sums = F.linear(input, torch.where(mask, weight, 0.0), bias)
    return sums if activation is None else MLP_ACTIVATIONS[activation](sums)


def masked_linear_grad_input(
    grad_output: Tensor,
    weight: Tensor,
    extents: Tensor | None,
    rows: Tensor | None,
    columns: Tensor | None,
    tiles: Tensor | None,
    dense: Tensor | None,
    algorithm: str = "auto",
) -> Tensor:
    """grad_output (weight * mask). See ``functional.masked_linear_grad_input``."""
    mask = mask_from_plan(weight.shape, extents, rows, columns, tiles, dense)
    return grad_output @ torch.where(mask, weight, 0.0)


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
    """Draws positions start ... stop-1 by pushing each value into the parameters of those after it."""
    dtype = compute_dtype(weight.dtype)
    if order is None:
        order = torch.arange(variables, device=state.device)
    if offsets is None:
        offsets = torch.arange(variables + 1) * (weight.shape[1] // variables)
    first = offsets.tolist()
    rows = first if head == "categorical" else _bounds(in_offsets, variables, variables)
    log_prob = torch.zeros(state.shape[0], dtype=torch.float64, device=state.device)
    values = []
    for p in range(start, stop):
        place = variables - 1 - p
        column, end = first[place], first[place + 1]
        parameters = state[:, column:end]
        own = head_of(head, levels, head_kinds, place)
        value, value_log_prob = _draw(parameters, order[p], seed, first_index, temperature, given, known, *own)
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
    """Draws positions start ... stop-1, a network of its own for each. Blocks of 8 networks share a matrix."""
    dtype, variables = compute_dtype(in_weight.dtype), state.shape[1]
    if order is None:
        order = torch.arange(variables, device=state.device)
    if offsets is None:
        offsets = torch.arange(variables + 1) * (out_weight.shape[0] // variables)
    first, starts = offsets.tolist(), block_starts.tolist()
    rows = first if head == "categorical" else _bounds(in_offsets, variables, variables)
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
        value, value_log_prob = _draw(parameters, order[p], seed, first_index, temperature, given, known, *own_heads[p])
        log_prob = log_prob + value_log_prob
        state[:, p] = value
    return state[:, start:stop].clone(), log_prob, state


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws positions start ... stop-1 of a MADE, each hidden unit computed once, when its last input is known."""
    dtype = compute_dtype(weights[0].dtype)
    if order is None:
        order = torch.arange(variables, device=state.device)
    steps = [program[i : i + 4] for i in range(0, len(program), 4)]
    terms = iter(
        weight.to(dtype) * (torch.arange(weight.shape[1], device=weight.device) < extent[:, None])
        for weight, extent in zip(weights, extents, strict=True)
    )
    # Of each layer the values it reads, and their weights; of each value its width.
    reads = [[(source, next(terms)) for source in step[:2] if source >= 0] for step in steps]
    widths = [weights[0].shape[1]]
    for of_layer, step in zip(reads, steps, strict=True):
        widths.append(of_layer[0][1].shape[0] if of_layer else widths[step[2]])
    columns, rows = _bounds(in_offsets, variables, widths[0]), _bounds(out_offsets, variables, widths[-1])
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
        parameters = total
        own_head = head_of(head, levels, head_kinds, p)
        value, value_log_prob = _draw(parameters, order[p], seed, first_index, temperature, given, known, *own_head)
        log_prob = log_prob + value_log_prob
        values.append(value)
        count = columns[p + 1] - columns[p]
        one_hot = value[:, None] == torch.arange(count, device=value.device)
        layers[0][:, columns[p] : columns[p + 1]] = value[:, None] if count == 1 else one_hot.to(dtype)
    drawn = torch.stack(values, 1) if values else state.new_empty(state.shape[0], 0)
    return drawn, log_prob, torch.cat(layers, 1)


def _bounds(offsets: Tensor | None, variables: int, rows: int) -> list[int]:
    """The first row of each variable, and the number of all."""
    return list(range(0, rows + 1, rows // variables)) if offsets is None else offsets.tolist()


class _ReferenceModel(nn.Module):
    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, D) of 0 and 1 -> (B,) in nats."""
        return bernoulli_log_prob(self(x, context), x).sum(1)

    @torch.no_grad()
    def sample(self, n: int, context: Tensor | None = None, *, seed: int, temperature: float = 1.0) -> Tensor:
        """n rows, (n, D), by D full evaluations; context: (C,). The uniforms are those of the fast models."""
        x = self.out_bias.new_zeros(n, self.variables)
        for p in range(self.variables):
            i = torch.tensor(p) if self.order is None else self.order[p]
            logits = self(x, None if context is None else context.expand(n, -1))[:, i]
            x[:, i] = _draw(logits.unsqueeze(-1), i.to(x.device), seed, 0, temperature, None, None)[0]
        return x


class ReferenceFVSBN(_ReferenceModel):
    """p(x_i = 1 | x_<i) = sigmoid(bias_i + sum_{j<i} x_j weight_ji): a logistic regression per variable.

    "Before" is in the sense of ``order``. Weights are stored by place, the last position first: row q and column q
    belong to the variable at position D-1-q, so what row q adds lies before column q.
    Source: Frey, Hinton, Dayan, NeurIPS 1995.
    """

    def __init__(self, variables: int, order: Tensor | None = None, context_features: int = 0) -> None:
        super().__init__()
        self.variables = variables
        self.weight = nn.Parameter(torch.randn(variables, variables) / variables**0.5)
        self.bias = nn.Parameter(torch.zeros(variables))
        if context_features:
            self.context_weight = nn.Parameter(torch.randn(variables, context_features) / context_features**0.5)
        self.register_buffer("order", order)

    @property
    def out_bias(self) -> Tensor:
        return self.bias

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The logits, (B, D)."""
        order = torch.arange(self.variables, device=x.device) if self.order is None else self.order
        places = order.flip(0)
        logits = x[:, places] @ self.weight.tril(-1) + self.bias
        if context is not None:
            logits = logits + context @ self.context_weight.T
        return logits[:, places.argsort()]


class ReferenceARMLP(_ReferenceModel):
    """p(x_i = 1 | x_<i) = sigmoid(b_i + v_i . f(c_i + sum_{j<i} x_j W_ij)): a network of its own for each variable.

    "Before" is in the sense of ``order``, and everything is stored by position. Networks go in blocks of 8: a block
    has, for each position that its last network sees, a row of in_weight for each of its networks.
    Source: Bengio and Bengio, NeurIPS 1999.
    """

    def __init__(
        self,
        variables: int,
        hidden_features: int,
        order: Tensor | None = None,
        activation: str = "sigmoid",
        context_features: int = 0,
    ) -> None:
        super().__init__()
        self.variables, self.activation = variables, activation
        blocks = [range(begin, min(begin + 8, variables)) for begin in range(0, variables, 8)]
        # For each network and each position before it, the row of in_weight.
        self.rows, start = [], 0
        for block in blocks:
            self.rows += [[start + j * len(block) + n for j in range(p)] for n, p in enumerate(block)]
            start += len(block) * block[-1]
        self.in_weight = nn.Parameter(torch.randn(start, hidden_features) / variables**0.5)
        self.in_bias = nn.Parameter(torch.zeros(variables, hidden_features))
        self.out_weight = nn.Parameter(torch.randn(variables, hidden_features) / hidden_features**0.5)
        self.out_bias = nn.Parameter(torch.zeros(variables))
        if context_features:
            weight = torch.randn(variables * hidden_features, context_features) / context_features**0.5
            self.context_weight = nn.Parameter(weight)
        self.register_buffer("order", order)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The logits, (B, D)."""
        bias = self.in_bias
        if context is not None:
            bias = bias + (context @ self.context_weight.T).unflatten(1, bias.shape)
        order = range(self.variables) if self.order is None else self.order.tolist()
        logits = [x.new_empty(0)] * self.variables
        for p, i in enumerate(order):
            before = x[:, list(order)[:p]]
            hidden = ACTIVATIONS[self.activation](before @ self.in_weight[self.rows[p]] + bias[..., p, :])
            logits[i] = hidden @ self.out_weight[p] + self.out_bias[p]
        return torch.stack(logits, 1)


class ReferenceNADE(_ReferenceModel):
    """p(x_i = 1 | x_<i) = sigmoid(out_bias_i + out_weight_i . h_i), h_i = f(in_bias + sum_{j<i} x_j in_weight_j).

    "Before" is in the sense of ``order``. Source: Larochelle and Murray, AISTATS 2011.
    """

    def __init__(
        self,
        variables: int,
        hidden_features: int,
        order: Tensor | None = None,
        activation: str = "sigmoid",
        context_features: int = 0,
    ) -> None:
        super().__init__()
        self.variables, self.activation = variables, activation
        self.in_weight = nn.Parameter(torch.randn(variables, hidden_features) / variables**0.5)
        self.in_bias = nn.Parameter(torch.zeros(hidden_features))
        self.out_weight = nn.Parameter(torch.randn(variables, hidden_features) / hidden_features**0.5)
        self.out_bias = nn.Parameter(torch.zeros(variables))
        if context_features:
            self.context_weight = nn.Parameter(torch.randn(hidden_features, context_features) / context_features**0.5)
        self.register_buffer("order", order)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The logits, (B, D)."""
        state = self.in_bias.expand(x.shape[0], -1)
        if context is not None:
            state = state + context @ self.context_weight.T
        logits = [x.new_empty(0)] * self.variables
        for i in range(self.variables) if self.order is None else self.order.tolist():
            hidden = ACTIVATIONS[self.activation](state)
            logits[i] = hidden @ self.out_weight[i] + self.out_bias[i]
            state = state + x[:, i, None] * self.in_weight[i]
        return torch.stack(logits, 1)


class ReferenceDeepNADE(_ReferenceModel):
    """An ordinary network from x, zero where it is not observed, and the mask of what is, to the logits of all
    variables; the conditional of a variable is its logit where those before it in ``order`` are observed.

    Source: Uria, Murray, Larochelle, "A deep and tractable density estimator", ICML 2014.
    """

    def __init__(
        self,
        variables: int,
        hidden_features: list[int],
        order: Tensor | None = None,
        activation: str = "relu",
        context_features: int = 0,
    ) -> None:
        super().__init__()
        self.variables, self.activation = variables, activation
        first, last = hidden_features[0], hidden_features[-1]
        self.in_weight = nn.Parameter(torch.randn(variables, first) / variables**0.5)
        self.mask_weight = nn.Parameter(torch.randn(variables, first) / variables**0.5)
        self.in_bias = nn.Parameter(torch.zeros(first))
        self.layers = nn.ModuleList(nn.Linear(below, above) for below, above in itertools.pairwise(hidden_features))
        self.out_weight = nn.Parameter(torch.randn(variables, last) / last**0.5)
        self.out_bias = nn.Parameter(torch.zeros(variables))
        if context_features:
            self.context_weight = nn.Parameter(torch.randn(first, context_features) / context_features**0.5)
        self.register_buffer("order", order)

    def logits(self, x: Tensor, observed: Tensor, context: Tensor | None = None) -> Tensor:
        """The logits of all variables, (B, D), given the observed ones."""
        hidden = self.in_bias + (x * observed) @ self.in_weight + observed.to(x.dtype) @ self.mask_weight
        if context is not None:
            hidden = hidden + context @ self.context_weight.T
        hidden = ACTIVATIONS[self.activation](hidden)
        for layer in self.layers:
            hidden = ACTIVATIONS[self.activation](layer(hidden))
        return F.linear(hidden, self.out_weight, self.out_bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The logits, (B, D)."""
        observed = torch.zeros_like(x, dtype=torch.bool)
        logits = [x.new_empty(0)] * self.variables
        for i in range(self.variables) if self.order is None else self.order.tolist():
            logits[i] = self.logits(x, observed, context)[:, i]
            observed = observed.index_fill(1, torch.tensor(i, device=x.device), True)
        return torch.stack(logits, 1)


class ReferenceOffsetNADE(_ReferenceModel):
    """A NADE whose input weights depend on how far back a variable lies on a grid (rows, columns, channels).

    Positions are in the grid's raster order, the channels of a pixel next to each other; ``offset_inputs`` says which
    ones a position sees. Output weights are shared over pixels, or one row for each variable.
    """

    def __init__(
        self,
        grid: tuple[int, int, int],
        hidden_features: int,
        window: tuple[int, int],
        order: Tensor | None = None,
        activation: str = "sigmoid",
        shared_output: bool = True,
        context_features: int = 0,
    ) -> None:
        super().__init__()
        self.grid, self.window, self.activation, self.shared_output = grid, window, activation, shared_output
        self.variables, channels = math.prod(grid), grid[2]
        inputs = len(offset_taps(window)) * channels + channels - 1
        outputs = channels if shared_output else self.variables
        self.in_weight = nn.Parameter(torch.randn(inputs, hidden_features) / inputs**0.5)
        self.in_bias = nn.Parameter(torch.zeros(hidden_features))
        self.out_weight = nn.Parameter(torch.randn(outputs, hidden_features) / hidden_features**0.5)
        self.out_bias = nn.Parameter(torch.zeros(outputs))
        if context_features:
            self.context_weight = nn.Parameter(torch.randn(hidden_features, context_features) / context_features**0.5)
        self.register_buffer("order", order)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The logits, (B, D)."""
        bias = self.in_bias.expand(x.shape[0], -1)
        if context is not None:
            bias = bias + context @ self.context_weight.T
        order = list(range(self.variables)) if self.order is None else self.order.tolist()
        logits = [x.new_empty(0)] * self.variables
        for p, i in enumerate(order):
            state = bias
            for position, index in offset_inputs(p, self.grid, self.window):
                state = state + x[:, order[position], None] * self.in_weight[index]
            row = p % self.grid[2] if self.shared_output else i
            logits[i] = ACTIVATIONS[self.activation](state) @ self.out_weight[row] + self.out_bias[row]
        return torch.stack(logits, 1)


class ReferenceMADE(_ReferenceModel):
    """An autoencoder whose weights are masked so that output p sees the inputs before p only.

    A hidden unit of degree e sees the variables at positions 0 ... e-1, the units of the layer before with degree at
    most e, and is seen by the outputs of positions e and on. Source: Germain et al., ICML 2015.
    """

    def __init__(
        self,
        variables: int,
        degrees: list[Tensor],
        order: Tensor | None = None,
        activation: str = "relu",
        context_features: int = 0,
        direct: bool = False,
        residual: bool = False,
        by_variable: bool = False,
    ) -> None:
        """degrees: for each hidden layer the degrees of its units, as ``ar_fast.models.MADE.degrees``.

        by_variable: weights are stored so, and not by position.
        """
        super().__init__()
        self.variables, self.activation, self.residual = variables, activation, residual
        self.by_variable = by_variable
        positions = order.cpu().argsort() if by_variable and order is not None else torch.arange(variables)
        degrees = [positions + 1, *degrees, positions]
        self.direct_mask = positions[None, :] < positions[:, None]
        self.masks = [inputs <= outputs[:, None] for inputs, outputs in itertools.pairwise(degrees)]
        self.layers = nn.ModuleList(nn.Linear(mask.shape[1], mask.shape[0]) for mask in self.masks)
        self.direct = nn.Linear(variables, variables, bias=False) if direct else None
        if context_features:
            hidden_features = degrees[1].numel()
            self.context_weight = nn.Parameter(torch.randn(hidden_features, context_features) / context_features**0.5)
        self.register_buffer("order", order)

    @property
    def out_bias(self) -> Tensor:
        return self.layers[-1].bias

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The logits, (B, D)."""
        reorder = self.order is not None and not self.by_variable
        stored = x[:, self.order] if reorder else x
        activate = MLP_ACTIVATIONS[self.activation]
        linear = [
            lambda h, layer=layer, mask=mask: F.linear(h, layer.weight * mask.to(h.device), layer.bias)
            for layer, mask in zip(self.layers, self.masks, strict=True)
        ]
        hidden = linear[0](stored)
        if context is not None:
            hidden = hidden + context @ self.context_weight.T
        for k in range(1, len(linear) - 1, 2 if self.residual else 1):
            new = linear[k](activate(hidden))
            hidden = hidden + linear[k + 1](activate(new)) if self.residual else new
        logits = linear[-1](activate(hidden))
        if self.direct is not None:
            logits = logits + F.linear(stored, self.direct.weight * self.direct_mask.to(x.device))
        return logits[:, self.order.argsort()] if reorder else logits
