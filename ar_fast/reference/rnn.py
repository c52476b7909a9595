"""Sampling of a recurrent model, with the arguments of its op's schema."""

from __future__ import annotations

import torch
from torch import Tensor

from .draws import draw
from .heads import chosen, compute_dtype

# How many gates each cell has: its weights have H rows for each gate.
GATES = {"gru": 3, "lstm": 4, "rnn": 1, "rnn_relu": 1}


def rnn_cell(
    cell: str, from_input: Tensor, from_state: Tensor, state: Tensor, cell_state: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """One step of a layer as in torch.nn's GRUCell, LSTMCell and RNNCell: the next state, and an LSTM's cell state.

    ``from_input`` is W_ih x + b_ih and ``from_state`` W_hh h + b_hh, (B, G H) each.
    """
    if cell == "gru":
        (in_r, in_z, in_n), (r, z, n) = from_input.chunk(3, 1), from_state.chunk(3, 1)
        new = torch.tanh(in_n + torch.sigmoid(in_r + r) * n)
        return new + torch.sigmoid(in_z + z) * (state - new), None
    if cell == "lstm":
        i, f, g, o = (from_input + from_state).chunk(4, 1)
        cell_state = torch.sigmoid(f) * cell_state + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(cell_state), cell_state
    return (torch.tanh if cell == "rnn" else torch.relu)(from_input + from_state), None


def rnn_sample(
    state: Tensor,
    cell_state: Tensor | None,
    last: Tensor,
    finished: Tensor | None,
    in_table: Tensor,
    in_bias: Tensor,
    in_weights: list[Tensor],
    in_biases: list[Tensor],
    recurrent_weights: list[Tensor],
    recurrent_biases: list[Tensor],
    out_weight: Tensor,
    out_bias: Tensor,
    order: Tensor | None,
    given: Tensor | None,
    known: Tensor | None,
    limits: Tensor | None,
    variables: int,
    cell: str,
    head: str,
    levels: int,
    seed: int,
    first_index: int,
    first_position: int,
    start: int,
    stop: int,
    temperature: float,
    top_k: int,
    top_p: float,
    stop_token: int,
    algorithm: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draws positions start ... stop-1: the values, their log_prob, and the state, cell state, last and finished."""
    dtype, batch = compute_dtype(recurrent_weights[0].dtype), last.shape[0]
    if order is None:
        order = torch.arange(variables, device=last.device)
    states = list(state)
    cell_states = list(state) if cell_state is None else list(cell_state)
    finished = torch.zeros(batch, dtype=torch.bool, device=last.device) if finished is None else finished
    if limits is not None:
        finished = finished | (limits <= start)
    log_prob = torch.zeros(batch, dtype=torch.float64, device=last.device)
    values = []
    for p in range(start, stop):
        running = ~finished
        from_input = in_bias.to(dtype).expand(batch, -1)
        if first_position + p > 0:
            if head == "categorical":
                row, factor = chosen(last, len(in_table))
                from_input = from_input + in_table[row].to(dtype) * factor[:, None].to(dtype)
            else:
                from_input = from_input + last[:, None] * in_table.to(dtype)
        for layer, weight in enumerate(recurrent_weights):
            if layer > 0:
                own_weight, own_bias = in_weights[layer - 1].to(dtype), in_biases[layer - 1].to(dtype)
                from_input = states[layer - 1] @ own_weight.T + own_bias
            from_state = states[layer] @ weight.to(dtype).T + recurrent_biases[layer].to(dtype)
            new, new_cell = rnn_cell(cell, from_input, from_state, states[layer], cell_states[layer])
            states[layer] = torch.where(running[:, None], new, states[layer])
            if new_cell is not None:
                cell_states[layer] = torch.where(running[:, None], new_cell, cell_states[layer])
        parameters = states[-1] @ out_weight.to(dtype).T + out_bias.to(dtype)
        value, value_log_prob = draw(
            parameters, order[p], seed, first_index, temperature, given, known, head, levels,
            first_variable=first_position, top_k=top_k, top_p=top_p,
        )  # fmt: skip
        log_prob = log_prob + value_log_prob.masked_fill(finished, 0.0)
        values.append(value.masked_fill(finished, max(stop_token, 0)))
        last = torch.where(running, value, last)
        if stop_token >= 0:
            drawn = running if known is None else running & ~known.index_select(1, order[p].view(1))[:, 0]
            finished = finished | (drawn & (value == stop_token))
        if limits is not None:
            finished = finished | (limits <= p + 1)
    drawn = torch.stack(values, 1) if values else last.new_empty(batch, 0)
    cells = torch.stack(cell_states) if cell == "lstm" else last.new_empty(0)
    return drawn, log_prob, torch.stack(states), cells, last.clone(), finished.clone()
