"""OffsetNADE: a NADE whose input weights depend on how far back a variable is; it draws events of any size."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from .. import functional, heads, orderings
from .._integers import integers
from .._structure import building
from .._vocabulary import ACTIVATIONS
from ..heads.base import chosen, one_hot
from . import _inputs
from ._context import add_context
from ._standardize import Standardization
from .base import AutoregressiveModel
from .sampling import Request, Rows, Sampler

__all__ = ["OffsetNADE"]

# What is drawn before progress is reported: at least so many rows of an image, and so many positions.
_STEP_ROWS = 32
_STEP_POSITIONS = 2**14
# How much of the units of some events is evaluated together on the CPU: on 2 cores, 1 to 4 MB took the same time, 6 MB
# and more two to four times as long.
_CACHE_BYTES = 2 * 2**20


class OffsetNADE(AutoregressiveModel):
    r"""A NADE with input weights tied by offset: hidden units see the same window of earlier variables everywhere.

    .. math::
        a = c + U z + \sum_{t, s} x_{t, s} W_{t, s} + \sum_{s < \mathrm{channel}} x_s W_{T, s}, \quad
        p(x_i \mid x_{<i}) = p_{\mathrm{head}}(x_i; b + V g(f(a)))

    where t runs over the T pixels of the window (those outside the event add nothing) and s over their channels, W =
    in_weight, c = in_bias, V = out_weight, b = out_bias, U = context_weight, z = context, f = activation, and g are the
    further hidden layers, each a linear layer and f; with one hidden layer there are none. In an image
    the window is a causal neighbourhood: the ``up`` rows above, with ``side`` columns to each side, and in the same row
    the ``side`` pixels to the left. In a sequence it is the last K variables. The channels of a pixel are adjacent in
    the order, and a channel also sees the earlier ones of its own pixel. V and b belong to a channel and are the same
    for all pixels, so the model has O(window H) parameters and draws events of any size: see ``resized``.

    Args:
        event_shape: (D), (H, W) or (C, H, W).
        hidden_features: the sizes of one or more hidden layers, H_1 to H_n; an integer is one layer. The first sees the
            window; the further ones see one variable's hidden units only.
        window: how far a variable sees: K for a sequence; for an image one number for both ``up`` and ``side``, or two.
        activation: "sigmoid", "tanh" or "relu".
        shared_output: share the output weights over pixels; otherwise each variable has its own, as in NADE.
        head: None is heads.Bernoulli(); every variable must have the same number of parameters.
        order: (D) integers, the variable at each place of the grid, row by row; None is
            ``orderings.raster(event_shape)``. ``orderings.reversed`` starts at the lower right.
        context_features: C; 0 is no context.
        validate_args: check values; see :class:`AutoregressiveModel`.
        device: device of the parameters.
        dtype: dtype of the parameters: float32, float64, bfloat16 or float16.

    Raises:
        ValueError: for an argument that breaks a rule above.

    Example:
        >>> model = OffsetNADE((16, 16), hidden_features=32, window=3)
        >>> x = model.sample(4, seed=0)
        >>> x.shape, model.log_prob(x).shape
        (torch.Size([4, 16, 16]), torch.Size([4]))
        >>> model.resized((24, 40)).sample(seed=0).shape
        torch.Size([24, 40])
    """

    counts: int  # its heads have one for all variables

    def __init__(
        self,
        event_shape: int | Sequence[int],
        hidden_features: int | Sequence[int],
        window: int | Sequence[int],
        activation: str = "sigmoid",
        *,
        shared_output: bool = True,
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
        units = integers(hidden_features)
        if not units or min(units) < 1:
            raise ValueError(
                f"OffsetNADE: hidden_features must be one or more positive integers, got {hidden_features!r}"
            )
        if activation not in ACTIVATIONS:
            names = ", ".join(ACTIVATIONS)
            raise ValueError(f"OffsetNADE: activation must be one of {names}, got {activation!r}")
        if not isinstance(self.counts, int):
            raise ValueError(
                f"OffsetNADE: head must have as many parameters for every variable, got {self.head!r}: its weights are "
                "shared"
            )
        self._units = units
        #: A number for one layer, else a list.
        self.hidden_features = units[0] if len(units) == 1 else units
        self.activation = activation
        self.shared_output = shared_output
        #: (rows, columns, channels)
        self.grid = _grid(self.event_shape)
        #: (up, side)
        self.window = _window(window, len(self.event_shape))
        channels = self.grid[2]
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self._gathers = isinstance(self.head, heads.Categorical)
        self._taps = len(_offset_taps(self.window))
        inputs = self._taps * channels + channels - 1
        out_rows = (channels if shared_output else self.variables) * self.counts
        in_rows = inputs * (self.counts if self._gathers else 1)
        self.in_weight = nn.Parameter(torch.empty(in_rows, units[0], **options))
        self.in_bias = nn.Parameter(torch.empty(units[0], **options))
        self.layers: Any = nn.ModuleList(
            nn.Linear(below, above, **options) for below, above in itertools.pairwise(units)
        )
        self.out_weight = nn.Parameter(torch.empty(out_rows, units[-1], **options))
        self.out_bias = nn.Parameter(torch.empty(out_rows, **options))
        self.context_weight = None
        if context_features:
            self.context_weight = nn.Parameter(torch.empty(units[0], context_features, **options))
        self._build()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform weights within 1 / sqrt(inputs) of zero, zero biases; the means of mixtures are spread out."""
        inputs = len(self.in_weight) // (self.counts if self._gathers else 1)
        fans = [(self.in_weight, inputs), (self.out_weight, self._units[-1])]
        if self.context_weight is not None:
            fans.append((self.context_weight, self.context_features))
        for weight, fan in fans:
            nn.init.uniform_(weight, -1 / math.sqrt(fan), 1 / math.sqrt(fan))
        for layer in self.layers:
            layer.reset_parameters()
        nn.init.zeros_(self.in_bias)
        nn.init.zeros_(self.out_bias)
        self._spread_mixtures()

    def config(self) -> dict[str, Any]:
        base = self._base_config()
        own = {
            "hidden_features": self.hidden_features,
            "window": list(self.window),
            "activation": self.activation,
            "shared_output": self.shared_output,
        }
        return {"event_shape": base.pop("event_shape"), **own, **base}

    def resized(self, event_shape: int | Sequence[int]) -> Self:
        """The same model for events of another size; it shares all parameters with this one.

        Args:
            event_shape: it must have the same number of dimensions and of channels.

        Raises:
            ValueError: for another kind of event; for a model whose parameters, order or standardization belong to one
                size.
        """
        shape = _inputs.event_shape(self._name, event_shape)
        if len(shape) != len(self.event_shape) or _grid(shape)[2] != self.grid[2]:
            raise ValueError(
                f"OffsetNADE: event_shape must have the dimensions and channels of {tuple(self.event_shape)}, "
                f"got {tuple(shape)}"
            )
        with building():
            own = torch.arange(self.variables) if self._order is None else self._order
            in_raster = torch.equal(orderings.raster(self.event_shape), own)
        if not (self.shared_output and in_raster):
            reason = "output weights for each variable" if in_raster else "an order of its own"
            raise ValueError(f"OffsetNADE: a model with {reason} cannot be resized, got event_shape {tuple(shape)}")
        other = copy.copy(self)
        other.event_shape, other.variables, other.grid = shape, math.prod(shape), _grid(shape)
        other._real = self._real[:1].expand(other.variables)
        if self.standardization is not None:
            other._modules = {**self._modules, "standardization": self._resized_standardization(shape)}
        # A raster order that is the identity is None, as in any model; whether it is depends only on the channels.
        with building():
            order = None if other.grid[2] == 1 else orderings.raster(shape)
        other._take_order(order)
        return other

    def _resized_standardization(self, shape: torch.Size) -> Standardization:
        """The shift and scale of each channel, for events of another size."""
        other = Standardization(math.prod(shape), self.device)
        if self.device.type == "meta":
            return other
        # Channels are the first dimension of an event with channels, and variables are in the order of the event.
        channels = self.grid[2]
        own = torch.stack([self.standardization.shift, self.standardization.scale]).reshape(2, channels, -1)
        if not torch.equal(own, own[..., :1].expand_as(own)):
            raise ValueError(
                "OffsetNADE: a model with a standardization for each variable cannot be resized, got event_shape "
                f"{tuple(shape)}; give standardize the same mean and std for all variables of a channel"
            )
        other.set(*own[..., :1].expand(2, channels, other.shift.numel() // channels).reshape(2, -1))
        return other

    # Evaluation: a convolution over the taps, then a network for each pixel.

    def _compute(self, weight: Tensor) -> Tensor:
        return weight.to(self.compute_dtype)

    def _in_bias(self, context: Tensor | None) -> Tensor:
        """(H), or (*batch, H) with a context (*batch, C), in the compute dtype."""
        bias = self._compute(self.in_bias)
        if context is None:
            return bias
        return F.linear(self._compute(context), self._compute(self.context_weight), bias).to(self.compute_dtype)

    def _inputs_of(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., C V): x itself, or each category as an indicator."""
        if not self._gathers:
            return x.to(self.compute_dtype)
        return one_hot(x, self.counts, self.compute_dtype).flatten(-2)

    def _neighbourhood(self, inputs: Tensor) -> Tensor:
        """inputs (B, rows, columns, C V) -> (B, rows, columns, H): the sum over the taps.

        The taps are the first elements of a (up + 1) x (2 side + 1) rectangle, row by row, and the rest of its last row
        is zero; if there are no rows above, this rest is cut off.
        """
        (up, side), width = self.window, inputs.shape[-1]
        taps = self._compute(self.in_weight)[: self._taps * width]
        if up == 0:
            rectangle, right = taps.reshape(1, side, width, -1), -1
        else:
            taps = F.pad(taps, (0, 0, 0, (side + 1) * width))
            rectangle, right = taps.reshape(up + 1, 2 * side + 1, width, -1), side
        padded = F.pad(inputs.permute(0, 3, 1, 2), (side, right, up, 0))
        # One of torch's convolutions has no gradient for weights in another order.
        return F.conv2d(padded, rectangle.permute(3, 2, 0, 1).contiguous()).permute(0, 2, 3, 1)

    def _parameters_of(self, x: Tensor, context: Tensor | None) -> Tensor:
        # Without gradients, the units of a few events at a time stay in a CPU's cache.
        if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._parameters_of_events(x, context)
        units = math.prod(self.grid[:2]) * max(self._units) * torch.finfo(self.compute_dtype).bits // 8
        together = max(1, _CACHE_BYTES // units)
        if len(x) <= together:
            return self._parameters_of_events(x, context)
        contexts = itertools.repeat(None) if context is None else context.split(together)
        return torch.cat(list(map(self._parameters_of_events, x.split(together), contexts)))

    def _parameters_of_events(self, x: Tensor, context: Tensor | None) -> Tensor:
        rows, columns, channels = self.grid
        inputs = self._inputs_of(self._by_position(x, 1).reshape(-1, rows, columns, channels))
        bias = self._in_bias(context)
        state = self._neighbourhood(inputs) + (bias if context is None else bias[:, None, None])
        center = self._compute(self.in_weight)[self._taps * inputs.shape[-1] :].chunk(max(1, channels - 1))
        own = inputs.chunk(channels, -1)
        parameters = []
        for channel in range(channels):
            if channel > 0:
                state = state + own[channel - 1] @ center[channel - 1]
            parameters.append(self._output(self._hidden(state).flatten(1, 2), channel))
        by_position = torch.stack(parameters, 2).flatten(1, 2).to(self.compute_dtype)
        by_variable = by_position if self.order is None else by_position.index_select(1, self.order.argsort())
        return by_variable.flatten(1)

    def _hidden(self, state: Tensor) -> Tensor:
        """state (..., H_1), the sums of the first layer -> (..., H_n), the units of the last one."""
        activation = ACTIVATIONS[self.activation]
        hidden = activation(state)
        for layer in self.layers:
            hidden = activation(F.linear(hidden, self._compute(layer.weight), self._compute(layer.bias)))
        return hidden

    def _output(self, hidden: Tensor, channel: int) -> Tensor:
        """hidden (B, pixels, H_n) -> (B, pixels, K), the parameters of one channel."""
        weight, bias = self._compute(self.out_weight), self._compute(self.out_bias)
        if self.shared_output:
            rows = slice(channel * self.counts, (channel + 1) * self.counts)
            return F.linear(hidden, weight[rows], bias[rows])
        channels = self.grid[2]
        index = torch.arange(self.variables, device=hidden.device) if self.order is None else self.order
        index = index[channel::channels]
        weight = weight.unflatten(0, (-1, self.counts)).index_select(0, index)
        bias = bias.unflatten(0, (-1, self.counts)).index_select(0, index)
        return torch.einsum("bph,pkh->bpk", hidden, weight) + bias

    def _multiply_adds(self) -> int:
        # Twice as many, since activations take as long as the few products of a variable.
        return 2 * self.variables * super()._multiply_adds()

    def _log_prob(self, x: Tensor, context: Tensor | None, per_variable: bool) -> Tensor:
        parameters = self._parameters_of(x, context)
        terms = functional.head_log_prob(parameters, x, head=self.head.kind, levels=self.head.levels)
        return terms if per_variable else terms.sum(1, dtype=torch.float64).to(self.compute_dtype)

    # One variable at a time. State.tensors: the bias, then the values by position.

    def _begin(self, batch: torch.Size, context: Tensor | None) -> tuple[Tensor, ...]:
        bias = self._in_bias(context).expand(*batch, self._units[0])
        return (bias, bias[..., :0])

    def _append(self, tensors: tuple[Tensor, ...], position: int, value: Tensor) -> tuple[Tensor, ...]:
        return (tensors[0], torch.cat([tensors[1], value.unsqueeze(-1).to(tensors[1].dtype)], -1))

    def _next_parameters(self, tensors: tuple[Tensor, ...], position: int) -> Tensor:
        state, values = tensors
        seen = _offset_inputs(position, self.grid, self.window)
        if seen:
            positions, inputs = torch.tensor(seen, device=self.device).unbind(1)
            x, weight = values.index_select(-1, positions), self._compute(self.in_weight)
            if self._gathers:
                row, factor = chosen(x, self.counts, weight.dtype)
                state = state + (weight[inputs * self.counts + row] * factor.unsqueeze(-1)).sum(-2)
            else:
                state = state + x @ weight.index_select(0, inputs)
        return self._parameters_after(state, position)

    def _parameters_after(self, state: Tensor, position: int) -> Tensor:
        """state (*batch, H_1), the sums that the hidden units are a function of -> (*batch, K)."""
        first = position % self.grid[2] if self.shared_output else self._variable(position)
        rows = slice(first * self.counts, (first + 1) * self.counts)
        return F.linear(self._hidden(state), self._compute(self.out_weight)[rows], self._compute(self.out_bias)[rows])

    # Sampling.

    def _sampler(self, request: Request) -> Sampler:
        (_, columns, channels), (up, side) = self.grid, self.window
        # How many positions back a variable can see.
        reach = (up * columns + side) * channels + channels - 1

        def begin(rows: Rows) -> tuple[Tensor, dict[str, Any]]:
            state = torch.zeros(rows.count, reach, dtype=self.compute_dtype, device=self.device)
            bias = self._compute(self.in_bias)
            if rows.context is not None:
                bias = add_context(bias, rows.context.to(self.dtype), self.context_weight)
            return state, {"in_bias": bias}

        step = functools.partial(
            functional.offset_nade_sample,
            in_weight=self.in_weight,
            weights=[layer.weight for layer in self.layers],
            biases=[layer.bias for layer in self.layers],
            out_weight=self.out_weight,
            out_bias=self.out_bias,
            grid=self.grid,
            window=self.window,
            order=self.order,
            shared_output=self.shared_output,
            activation=self.activation,
            head=self.head.kind,
            levels=self.head.levels,
        )
        return Sampler(reach + self._units[0], begin, step, self._positions_of_a_step())

    def _positions_of_a_step(self) -> int | None:
        """Whole rows of an image, and enough of them for wavefronts; None for a sequence."""
        rows, columns, channels = self.grid
        if rows == 1:
            return None
        return columns * channels * max(_STEP_ROWS, -(-_STEP_POSITIONS // (columns * channels)))

    def _set_output_bias(self, parameters: Tensor) -> None:
        if self.shared_output:
            parameters = self._by_position(parameters, 0).unflatten(0, (-1, self.grid[2])).mean(0)
        self.out_bias.copy_(parameters.flatten())


def _grid(event_shape: torch.Size) -> tuple[int, int, int]:
    if len(event_shape) > 3:
        raise ValueError(f"OffsetNADE: event_shape must be (D), (H, W) or (C, H, W), got {tuple(event_shape)}")
    if len(event_shape) == 1:
        return 1, event_shape[0], 1
    channels = event_shape[0] if len(event_shape) == 3 else 1
    return event_shape[-2], event_shape[-1], channels


def _window(given: int | Sequence[int], dimensions: int) -> tuple[int, int]:
    pair: tuple[int, ...] = tuple(integers(given) or ())
    if len(pair) == 1:
        pair = (0, *pair) if dimensions == 1 else (*pair, *pair)
    whole = len(pair) == 2 and min(pair) >= 0 and sum(pair) > 0
    if not whole or (dimensions == 1 and pair[0] > 0):
        rule = "a positive integer" if dimensions == 1 else "a positive integer or (up, side), not both 0"
        raise ValueError(f"OffsetNADE: window must be {rule}, got {given!r}")
    up, side = pair
    return up, side


def _offset_taps(window: tuple[int, int] | list[int]) -> list[tuple[int, int]]:
    """(rows down, columns right) of each tap of a window (up, side), row by row: all negative or to the left."""
    up, side = window
    above = [(row, column) for row in range(-up, 0) for column in range(-side, side + 1)]
    return above + [(0, column) for column in range(-side, 0)]


def _offset_inputs(
    position: int, grid: tuple[int, int, int] | list[int], window: tuple[int, int] | list[int]
) -> list[tuple[int, int]]:
    """What the variable at a position of an offset NADE sees: (position, number of the input in in_weight) pairs."""
    _, columns, channels = grid
    pixel, channel = divmod(position, channels)
    row, column = divmod(pixel, columns)
    taps = _offset_taps(window)
    inputs = [
        (((row + down) * columns + column + right) * channels + s, tap * channels + s)
        for tap, (down, right) in enumerate(taps)
        if row + down >= 0 and 0 <= column + right < columns
        for s in range(channels)
    ]
    return inputs + [(pixel * channels + s, len(taps) * channels + s) for s in range(channel)]
