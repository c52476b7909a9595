"""RNN: a recurrent network reads the earlier variables and predicts the next one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import functional, heads
from ..heads.base import one_hot
from ._context import add_context
from ._recurrent import Recurrent, States
from .base import AutoregressiveModel
from .sampling import Request, Rows, Sampler, block_rows

__all__ = ["RNN"]

# One call of the op draws so many positions that a block of rows takes about this many multiply-adds, for Ctrl-C within
# a second; a GPU's calls must not be so short.
_CALL_MULTIPLY_ADDS, _CALL_MULTIPLY_ADDS_ON_CUDA = 2**33, 2**36


class RNN(AutoregressiveModel):
    r"""One recurrent network for all variables, with the same number of parameters for events of any length.

    .. math::
        h_p = \mathrm{cell}(W x_{\mathrm{order}[p-1]} + U z + b, \; h_{p-1}), \quad
        p(x_{\mathrm{order}[p]} \mid \dots) = p_{\mathrm{head}}(x_{\mathrm{order}[p]}; c + V h_p)

    where the value before the first variable is the zero vector, h_{-1} = 0, and z = context. A category is fed as an
    indicator, so that it adds a column of W; any other value scales its column (a level lies in [-1, 1], a real value
    is standardised). W and U side by side are the cell's weight_ih_l0; V = out_weight and c = out_bias are the same for
    every variable. Each further layer takes the states of the layer below. The first layer has G H (H + I + C) + 2 G H
    weights, each further layer 2 G H H + 2 G H, and the output K (H + 1). G = 3, 4, 1 for gru, lstm, rnn, and I is one,
    or one per category. Evaluating or drawing an event costs about D G H^2 multiply-adds per layer.

    Args:
        event_shape: shape of one event, an int or several; D is the product.
        hidden_features: H.
        cell: "gru", "lstm", "rnn" (tanh) or "rnn_relu".
        num_layers: how many layers.
        dropout: probability of a zero between layers while training; ``sample`` and ``next`` drop nothing.
        head: None is heads.Bernoulli(); every variable must have the same number of parameters.
        order: (D) integers; None is ``orderings.raster(event_shape)``.
        context_features: C; 0 is no context.
        validate_args: check values; see :class:`AutoregressiveModel`.
        device: device of the parameters.
        dtype: dtype of the parameters: float32, float64, bfloat16 or float16.

    Attributes:
        rnn: the recurrent weights, under the names of torch.nn.GRU, LSTM or RNN, whose fused functions log_prob uses;
            ``rnn.to_torch()`` returns such a module.

    Raises:
        ValueError: for an argument that breaks a rule above.

    Source: Elman, "Finding structure in time", Cognitive Science 1990; Hochreiter and Schmidhuber, "Long short-term
    memory", Neural Computation 1997; Cho et al., "Learning phrase representations using RNN encoder-decoder for
    statistical machine translation", EMNLP 2014.

    Example:
        >>> model = RNN((28, 28), hidden_features=64)
        >>> model
        RNN(
          event_shape=(28, 28), hidden_features=64, cell='gru', num_layers=1
          (rnn): Recurrent('gru', 1, 64, batch_first=True)
        )
        >>> x = model.sample(4, seed=0)
        >>> x.shape, model.log_prob(x).shape
        (torch.Size([4, 28, 28]), torch.Size([4]))
    """

    counts: int  # its heads have one for all variables

    _any_order = True

    def __init__(
        self,
        event_shape: int | Sequence[int],
        hidden_features: int,
        cell: str = "gru",
        num_layers: int = 1,
        dropout: float = 0.0,
        *,
        head: heads.Head | None = None,
        order: Tensor | Sequence[int] | None = None,
        context_features: int = 0,
        validate_args: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            event_shape,
            head=head,
            order=order,
            context_features=context_features,
            validate_args=validate_args,
            device=device,
        )
        if not isinstance(self.counts, int):
            raise ValueError(
                f"RNN: head must have as many parameters for every variable, got {self.head!r}: its weights are shared"
            )
        self._inputs = self.counts if isinstance(self.head, heads.Categorical) else 1
        inputs = self._inputs + self.context_features
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.rnn = Recurrent("RNN", cell, inputs, hidden_features, num_layers, dropout, **options)
        self.cell, self.hidden_features = cell, self.rnn.hidden_size
        self.num_layers, self.dropout = self.rnn.num_layers, self.rnn.dropout
        self.out_weight = nn.Parameter(torch.empty(self.counts, self.hidden_features, **options))
        self.out_bias = nn.Parameter(torch.empty(self.counts, **options))
        self._build()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The cell as in torch.nn; output weights uniform within 1 / sqrt(H); zero out_bias; means spread out."""
        self.rnn.reset_parameters()
        bound = 1 / math.sqrt(self.hidden_features)
        nn.init.uniform_(self.out_weight, -bound, bound)
        nn.init.zeros_(self.out_bias)
        self._spread_mixtures()

    def config(self) -> dict[str, Any]:
        base = self._base_config()
        own = {
            "hidden_features": self.hidden_features,
            "cell": self.cell,
            "num_layers": self.num_layers,
            "dropout": self.dropout,
        }
        return {"event_shape": base.pop("event_shape"), **own, **base}

    # Evaluation: torch.nn's fused function over the values, shifted by one position.

    def _input_of(self, value: Tensor) -> Tensor:
        """value (...) -> (..., I): the value itself, or a category as an indicator."""
        if isinstance(self.head, heads.Categorical):
            return one_hot(value, self.counts, self.compute_dtype)
        return value.unsqueeze(-1).to(self.compute_dtype)

    def _with_context(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        """inputs (..., I) and context (..., C) -> (..., I + C)."""
        return inputs if context is None else torch.cat([inputs, context.to(self.compute_dtype)], -1)

    def _readout(self, hidden: Tensor) -> Tensor:
        """(..., H) -> (..., K)."""
        dtype = self.compute_dtype
        return F.linear(hidden, self.out_weight.to(dtype), self.out_bias.to(dtype)).to(dtype)

    def _parameters_of(self, x: Tensor, context: Tensor | None) -> Tensor:
        inputs = F.pad(self._input_of(self._by_position(x, 1)[:, :-1]), (0, 0, 1, 0))
        if context is not None:
            inputs = self._with_context(inputs, context[:, None].expand(-1, self.variables, -1))
        states = self.rnn.zero_states(inputs, (x.shape[0],))
        hidden, _ = self.rnn(inputs, states)
        by_position = self._readout(hidden)
        by_variable = by_position if self.order is None else by_position.index_select(1, self.order.argsort())
        return by_variable.flatten(1)

    def _multiply_adds(self) -> int:
        return self.variables * super()._multiply_adds()

    def _log_prob(self, x: Tensor, context: Tensor | None, per_variable: bool) -> Tensor:
        parameters = self._parameters_of(x, context)
        terms = functional.head_log_prob(parameters, x, head=self.head.kind, levels=self.head.levels)
        return terms if per_variable else terms.sum(1, dtype=torch.float64).to(self.compute_dtype)

    # One variable at a time. State.tensors: the context (with no features if there is none), and the states of each
    # layer, (*batch, L, H).

    def _after(self, inputs: Tensor, context: Tensor, states: States) -> tuple[Tensor, ...]:
        states = self.rnn.step(self._with_context(inputs, context), states)
        return (context, *(state.movedim(0, -2) for state in states))

    def _begin(self, batch: torch.Size, context: Tensor | None) -> tuple[Tensor, ...]:
        inputs = torch.zeros(*batch, self._inputs, dtype=self.compute_dtype, device=self.device)
        context = inputs[..., :0] if context is None else context.to(self.compute_dtype)
        return self._after(inputs, context, self.rnn.zero_states(inputs, tuple(batch)))

    def _append(self, tensors: tuple[Tensor, ...], position: int, value: Tensor) -> tuple[Tensor, ...]:
        return self._after(self._input_of(value), tensors[0], tuple(state.movedim(-2, 0) for state in tensors[1:]))

    def _next_parameters(self, tensors: tuple[Tensor, ...], position: int) -> Tensor:
        return self._readout(tensors[1][..., -1, :])

    # Sampling. The state of a sampling is the states of each layer, and the value before.

    def _sampler(self, request: Request) -> Sampler:
        dtype = self.compute_dtype
        first = self.rnn.layers(dtype)[0]
        table = first.weight_ih[:, : self._inputs].T.contiguous()
        lstm = self.cell == "lstm"

        def begin(rows: Rows) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
            bias = first.bias_ih
            if rows.context is not None:
                bias = add_context(bias, rows.context.to(dtype), first.weight_ih[:, self._inputs :])
            states = self.rnn.zero_states(bias, (rows.count,))
            return (bias.new_zeros(rows.count), *states), {"in_bias": bias}

        op: Callable[..., Any] = functools.partial(
            functional.rnn_sample,
            in_table=table,
            **self.rnn.sampling_arguments(),
            out_weight=self.out_weight,
            out_bias=self.out_bias,
            variables=self.variables,
            order=self.order,
            head=self.head.kind,
            levels=self.head.levels,
        )

        def step(tensors: tuple[Tensor, ...], **arguments: Any) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
            last, state, *cell_state = tensors
            drawn = op(state, last, cell_state=cell_state[0] if lstm else None, **arguments)
            states = (drawn.state, drawn.cell_state) if lstm else (drawn.state,)
            return drawn.values, drawn.log_prob, (drawn.last, *states)

        features = self.num_layers * self.hidden_features * (2 if lstm else 1)
        most = self.rnn.multiply_adds * block_rows(self, features)
        of_a_call = _CALL_MULTIPLY_ADDS_ON_CUDA if self.device.type == "cuda" else _CALL_MULTIPLY_ADDS
        return Sampler(features, begin, step, max(1, of_a_call // most))

    def _set_output_bias(self, parameters: Tensor) -> None:
        self.out_bias.copy_(parameters.mean(0))
