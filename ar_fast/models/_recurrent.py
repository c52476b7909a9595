"""Recurrent layers: torch.nn's weights and fused functions, single steps, and the arguments of the sampling op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from .. import functional
from .._integers import is_integer, is_real

# The names of the cells in the sampling op, and their names in torch.nn.
_MODES = {"gru": "GRU", "lstm": "LSTM", "rnn": "RNN_TANH", "rnn_relu": "RNN_RELU"}
_MODULES = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN, "rnn_relu": nn.RNN}
_FUSED: dict[str, Callable[..., Any]] = {
    "gru": torch.gru,
    "lstm": torch.lstm,
    "rnn": torch.rnn_tanh,
    "rnn_relu": torch.rnn_relu,
}

#: The state of each layer, (L, B, H), and for an LSTM its cell state too.
States = tuple[Tensor, ...]


@dataclass(frozen=True)
class Layer:
    """A layer's weights in the compute dtype, with torch.nn's names: (G H, I), (G H, H), (G H) and (G H)."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor


class Recurrent(nn.RNNBase):
    """The weights of a torch.nn.GRU, LSTM or RNN under their names, on which its fused functions run.

    It is not one of these three classes: torch.compile refuses to trace a function that sees one of them. Sums and
    states are in the dtype of the inputs, the compute dtype, whatever dtype the weights are stored in.
    """

    def __init__(
        self,
        name: str,
        cell: str,
        in_features: int,
        hidden_features: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """``name`` is the name of the model for error messages."""
        if cell not in _MODES:
            raise ValueError(f"{name}: cell must be one of {', '.join(_MODES)}, got {cell!r}")
        for argument, value in (("hidden_features", hidden_features), ("num_layers", num_layers)):
            if not is_integer(value) or value < 1:
                raise ValueError(f"{name}: {argument} must be a positive integer, got {value!r}")
        if not is_real(dropout) or not 0 <= dropout < 1:
            raise ValueError(f"{name}: dropout must be a number in [0, 1), got {dropout!r}")
        if dropout > 0 and num_layers == 1:
            raise ValueError(f"{name}: dropout must be 0 with num_layers 1, since it is between layers, got {dropout}")
        sizes = in_features, int(hidden_features), int(num_layers)
        super().__init__(_MODES[cell], *sizes, batch_first=True, dropout=float(dropout), device=device, dtype=dtype)
        self.cell = cell

    @classmethod
    def from_torch(cls, name: str, rnn: nn.RNNBase) -> Self:
        """An object that shares the parameters of a torch.nn.GRU, LSTM or RNN.

        Raises:
            ValueError: for another module, for a bidirectional one, and for one with a projection or without biases.
        """
        if not isinstance(rnn, (nn.GRU, nn.LSTM, nn.RNN)):
            raise ValueError(f"{name}: rnn must be a torch.nn.GRU, LSTM or RNN, got {type(rnn).__name__}")
        if rnn.bidirectional:
            raise ValueError(f"{name}: rnn must not be bidirectional, since it would see what it predicts, got {rnn!r}")
        if rnn.proj_size:
            raise ValueError(f"{name}: rnn must have proj_size 0, got {rnn.proj_size}")
        if not rnn.bias:
            raise ValueError(f"{name}: rnn must have biases, got {rnn!r}")
        cell = next(cell for cell, mode in _MODES.items() if mode == rnn.mode)
        dropout = rnn.dropout if rnn.num_layers > 1 else 0.0
        sizes = rnn.input_size, rnn.hidden_size, rnn.num_layers
        return cls(name, cell, *sizes, dropout, device="meta")._share(rnn)

    def to_torch(self) -> nn.RNNBase:
        """A torch.nn.GRU, LSTM or RNN that shares these parameters."""
        options = {"nonlinearity": "relu"} if self.cell == "rnn_relu" else {}
        sizes = self.input_size, self.hidden_size, self.num_layers
        other = _MODULES[self.cell](*sizes, batch_first=True, dropout=self.dropout, device="meta", **options)
        return Recurrent._share(other, self)

    def _share(self: Any, source: nn.RNNBase) -> Any:
        for parameter, tensor in source.named_parameters():
            setattr(self, parameter, tensor)
        return self.train(source.training)

    def layers(self, dtype: torch.dtype) -> list[Layer]:
        """The current weights, including those that functional_call replaces."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return [
            Layer(*(getattr(self, f"{name}_l{number}").to(dtype) for name in names))
            for number in range(self.num_layers)
        ]

    def zero_states(self, like: Tensor, batch: tuple[int, ...]) -> States:
        """The states at the start of a run, (L, *batch, H)."""
        zeros = like.new_zeros(self.num_layers, *batch, self.hidden_size)
        return (zeros, zeros) if self.cell == "lstm" else (zeros,)

    def forward(self, inputs: Tensor, states: States) -> tuple[Tensor, States]:
        """Inputs (B, T, I) -> the last layer's states after each input, (B, T, H), and all layers' after the last one.

        torch's fused functions do not run under torch.compile, torch.func and forward-mode AD: there this runs the
        steps one by one. On the CPU autocast changes nothing here, since not every processor has its 16-bit LSTM.
        """
        with torch.autocast("cpu", enabled=False):
            if inputs.shape[1] == 0 or torch.compiler.is_compiling() or functional.transformed():
                return self._by_steps(inputs, states)
            layers = self.layers(inputs.dtype)
            weights = [tensor for layer in layers for tensor in vars(layer).values()]
            dropout = self.dropout if self.training else 0.0
            begins_with = states if self.cell == "lstm" else states[0]
            result = _FUSED[self.cell](
                inputs, begins_with, weights, True, len(layers), dropout, self.training, False, True
            )
            return result[0], tuple(result[1:])

    def _by_steps(self, inputs: Tensor, states: States) -> tuple[Tensor, States]:
        after = []
        for number, layer in enumerate(self.layers(inputs.dtype)):
            if number > 0:
                inputs = F.dropout(inputs, self.dropout, self.training)
            from_inputs = F.linear(inputs, layer.weight_ih, layer.bias_ih)
            own, outputs = tuple(state[number] for state in states), []
            for from_input in from_inputs.unbind(1):
                own = self._cell(from_input, layer, own)
                outputs.append(own[0])
            inputs = torch.stack(outputs, 1) if outputs else from_inputs[..., : self.hidden_size]
            after.append(own)
        return inputs, tuple(torch.stack(tensors) for tensors in zip(*after, strict=True))

    def step(self, inputs: Tensor, states: States) -> States:
        """The states (L, *batch, H) after one more input (*batch, I), without dropout."""
        after = []
        with torch.autocast("cpu", enabled=False):
            for number, layer in enumerate(self.layers(inputs.dtype)):
                from_input = F.linear(inputs, layer.weight_ih, layer.bias_ih)
                after.append(self._cell(from_input, layer, tuple(state[number] for state in states)))
                inputs = after[-1][0]
        return tuple(torch.stack(tensors) for tensors in zip(*after, strict=True))

    def _cell(self, from_input: Tensor, layer: Layer, states: States) -> States:
        """One step of one layer, each (*batch, H); from_input (*batch, G H) is W_ih x + b_ih."""
        from_state = F.linear(states[0], layer.weight_hh, layer.bias_hh)
        if self.cell == "gru":
            in_r, in_z, in_n = from_input.chunk(3, -1)
            r, z, n = from_state.chunk(3, -1)
            new = torch.tanh(in_n + torch.sigmoid(in_r + r) * n)
            return (new + torch.sigmoid(in_z + z) * (states[0] - new),)
        if self.cell == "lstm":
            i, f, g, o = (from_input + from_state).chunk(4, -1)
            cell_state = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(cell_state), cell_state
        return ((torch.tanh if self.cell == "rnn" else torch.relu)(from_input + from_state),)

    def sampling_arguments(self) -> dict[str, Any]:
        """The arguments of functional.rnn_sample, except those for the first layer's input."""
        first: Any = self.weight_hh_l0
        layers = self.layers(first.dtype)
        return {
            "recurrent_weights": [layer.weight_hh for layer in layers],
            "recurrent_biases": [layer.bias_hh for layer in layers],
            "in_weights": [layer.weight_ih for layer in layers[1:]],
            "in_biases": [layer.bias_ih for layer in layers[1:]],
            "cell": self.cell,
        }

    def extra_repr(self) -> str:
        return f"{self.cell!r}, {super().extra_repr()}"

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one step of one row, except those for the first layer's input."""
        own = [parameter.numel() for name, parameter in self.named_parameters() if name.startswith("weight")]
        first: Any = self.weight_ih_l0
        return sum(own) - first.numel()
