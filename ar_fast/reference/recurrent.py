"""The recurrent models in plain torch: each loads the state_dict of its namesake in ``ar_fast.models``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .draws import head_draw
from .models import _ReferenceModel
from .rnn import rnn_cell


def _advance(rnn: nn.RNNBase, cell: str, x: Tensor, states: list[Tensor], cell_states: list[Tensor]) -> Tensor:
    """The last layer's state (B, H) after one more input (B, I); states and cell_states hold those of each layer."""
    for layer in range(rnn.num_layers):
        from_input = F.linear(x, getattr(rnn, f"weight_ih_l{layer}"), getattr(rnn, f"bias_ih_l{layer}"))
        from_state = F.linear(states[layer], getattr(rnn, f"weight_hh_l{layer}"), getattr(rnn, f"bias_hh_l{layer}"))
        x, new_cell = rnn_cell(cell, from_input, from_state, states[layer], cell_states[layer])
        states[layer], cell_states[layer] = x, cell_states[layer] if new_cell is None else new_cell
    return x


def _module(cell: str, inputs: int, hidden_features: int, num_layers: int) -> nn.RNNBase:
    return {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}[cell](inputs, hidden_features, num_layers)


class ReferenceRNN(_ReferenceModel):
    """p(x_i = 1 | x_<i) = sigmoid(out_bias + out_weight . h), h = cell(x_before, h_before): the same at each position.

    "Before" is in the sense of ``order``; before the first variable both are zeros. A context is part of every input.
    Source: Elman, Cognitive Science 1990. ``rnn`` only holds the weights here.
    """

    def __init__(
        self,
        variables: int,
        hidden_features: int,
        order: Tensor | None = None,
        cell: str = "gru",
        num_layers: int = 1,
        context_features: int = 0,
    ) -> None:
        super().__init__()
        self.variables, self.cell = variables, cell
        self.rnn = _module(cell, 1 + context_features, hidden_features, num_layers)
        self.out_weight = nn.Parameter(torch.randn(1, hidden_features) / hidden_features**0.5)
        self.out_bias = nn.Parameter(torch.zeros(1))
        self.register_buffer("order", order)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The logits, (B, D)."""
        states = [x.new_zeros(x.shape[0], self.rnn.hidden_size)] * self.rnn.num_layers
        cell_states, before = list(states), x.new_zeros(x.shape[0])
        logits = [x.new_empty(0)] * self.variables
        for i in range(self.variables) if self.order is None else self.order.tolist():
            inputs = before[:, None] if context is None else torch.cat([before[:, None], context], 1)
            hidden = _advance(self.rnn, self.cell, inputs, states, cell_states)
            logits[i] = F.linear(hidden, self.out_weight, self.out_bias)[:, 0]
            before = x[:, i]
        return torch.stack(logits, 1)


class ReferenceCharRNN(nn.Module):
    """p(token | earlier tokens) = softmax(readout(h)), h = cell(token before, h before), for one sequence at a time.

    The token before is fed as an indicator, or as its row of ``embedding``. Before the first token, both the input and
    the state are zeros.
    """

    def __init__(
        self,
        symbols: int,
        hidden_features: int,
        cell: str = "gru",
        num_layers: int = 1,
        embedding_features: int | None = None,
    ) -> None:
        super().__init__()
        self.symbols, self.cell = symbols, cell
        self.embedding = None if embedding_features is None else nn.Embedding(symbols, embedding_features)
        self.rnn = _module(cell, embedding_features or symbols, hidden_features, num_layers)
        self.readout = nn.Linear(hidden_features, symbols)

    def _begin(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        zeros = self.readout.weight.new_zeros(1, self.rnn.hidden_size)
        layers = self.rnn.num_layers
        return self.readout.weight.new_zeros(1, self.rnn.input_size), [zeros] * layers, [zeros] * layers

    def _input(self, token: Tensor) -> Tensor:
        if self.embedding is not None:
            return self.embedding(token)[None]
        return F.one_hot(token, self.symbols)[None].to(self.readout.weight.dtype)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """tokens (T) -> nats of each, (T)."""
        inputs, states, cell_states = self._begin()
        terms = [self.readout.weight.new_empty(0)]
        for token in tokens:
            logits = self.readout(_advance(self.rnn, self.cell, inputs, states, cell_states))
            terms.append(logits.log_softmax(1)[:, token])
            inputs = self._input(token)
        return torch.cat(terms)

    @torch.no_grad()
    def sample(
        self, prompt: Tensor, length: int, index: int, seed: int, *, stop: int | None = None, **draws: Any
    ) -> Tensor:
        """Up to ``length`` tokens after the prompt (P), up to the token ``stop``: what the fast model draws in the row
        with this index. ``draws``: temperature, and optionally top_k and top_p."""
        inputs, states, cell_states = self._begin()
        tokens, sample = prompt.tolist(), torch.tensor([index])
        for position in range(len(prompt) + length):
            logits = self.readout(_advance(self.rnn, self.cell, inputs, states, cell_states))
            if position >= len(prompt):
                value = head_draw(logits, seed, sample, torch.tensor(position), "categorical", 0, **draws)
                tokens.append(int(value))
            inputs = self._input(torch.tensor(tokens[position]))
            if position >= len(prompt) and tokens[position] == stop:
                break
        return torch.tensor(tokens[len(prompt) :], dtype=torch.int64)
