"""NADE and RNADE: one network per variable, with shared weights, in O(H) per variable."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import functional, heads
from .._integers import is_integer
from .._structure import starts
from .._vocabulary import ACTIVATIONS
from ..heads.base import chosen
from ._context import add_context
from .base import AutoregressiveModel
from .sampling import Request, Rows, Sampler

__all__ = ["NADE", "RNADE"]


class NADE(AutoregressiveModel):
    r"""The neural autoregressive distribution estimator.

    .. math::
        p(x_i \mid x_{<i}) = p_{\mathrm{head}}(x_i; \theta_i), \quad
        \theta_i = b_i + V_i \, f\big(s_i (c + U z + \sum_{j < i} x_j W_j)\big)

    with W = in_weight, c = in_bias, V = out_weight, b = out_bias, U = context_weight, z = context, f = activation and
    s = activation_scale (1 by default); "<" is in the sense of the order. With a Categorical head variable j adds the
    row of W that belongs to its category. W has R_in rows (one per variable, or per category) and V has R_out rows (one
    per parameter of the head), which makes (R_in + R_out) H + R_out + H weights, and H C for a context. Evaluating and
    drawing an event both cost O(R_out H).

    Args:
        event_shape: shape of one event, an int or several; D is the product.
        hidden_features: H.
        activation: "sigmoid", "tanh" or "relu".
        activation_scale: learn a factor of the pre-activations for each variable, initially 1; see :class:`RNADE`.
        head: None is heads.Bernoulli().
        order: (D) integers; None is ``orderings.raster(event_shape)``.
        context_features: C; 0 is no context.
        validate_args: check values; see :class:`AutoregressiveModel`.
        device: device of the parameters.
        dtype: dtype of the parameters: float32, float64, bfloat16 or float16.

    Raises:
        ValueError: for an argument that breaks a rule above.

    Source: Larochelle and Murray, "The neural autoregressive distribution estimator", AISTATS 2011.

    Example:
        >>> model = NADE((28, 28), hidden_features=500)
        >>> model
        NADE(event_shape=(28, 28), hidden_features=500, activation='sigmoid')
        >>> x = model.sample(16, seed=0)
        >>> x.shape, model.log_prob(x).shape
        (torch.Size([16, 28, 28]), torch.Size([16]))
    """

    _any_order = True

    def __init__(
        self,
        event_shape: int | Sequence[int],
        hidden_features: int,
        activation: str = "sigmoid",
        *,
        activation_scale: bool = False,
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
        if not is_integer(hidden_features) or hidden_features < 1:
            raise ValueError(f"NADE: hidden_features must be a positive integer, got {hidden_features!r}")
        if activation not in ACTIVATIONS:
            names = ", ".join(ACTIVATIONS)
            raise ValueError(f"NADE: activation must be one of {names}, got {activation!r}")
        self.hidden_features = hidden_features = int(hidden_features)
        self.activation = activation
        out_rows = self.counts * self.variables if isinstance(self.counts, int) else sum(self.counts)
        in_rows = sum(self.head.inputs(self.variables))
        self.in_weight = nn.Parameter(torch.empty(in_rows, hidden_features, device=device, dtype=dtype))
        self.in_bias = nn.Parameter(torch.empty(hidden_features, device=device, dtype=dtype))
        self.out_weight = nn.Parameter(torch.empty(out_rows, hidden_features, device=device, dtype=dtype))
        self.out_bias = nn.Parameter(torch.empty(out_rows, device=device, dtype=dtype))
        self.activation_scale = None
        if activation_scale:
            self.activation_scale = nn.Parameter(torch.empty(self.variables, device=device, dtype=dtype))
        self.context_weight = None
        if context_features:
            self.context_weight = nn.Parameter(
                torch.empty(hidden_features, context_features, device=device, dtype=dtype)
            )
        self._build()
        self.reset_parameters()

    def _derive(self) -> dict[str, Tensor | None]:
        base, offsets = super()._derive(), self.head.offsets(self.variables)
        counts = base["input_counts"]
        if isinstance(self.head, heads.Categorical):
            # Without offsets, the one row of a variable with one category would be scaled by its value.
            inputs = torch.arange(self.variables + 1) if self.counts == 1 else offsets
        else:
            inputs = None if counts is None else starts(counts)
        return {**base, "in_offsets": inputs, "out_offsets": offsets}

    def reset_parameters(self) -> None:
        """Uniform weights within 1 / sqrt(inputs) of zero, zero biases, scales of 1; means of mixtures spread out."""
        fans = [(self.in_weight, self.variables), (self.out_weight, self.hidden_features)]
        if self.context_weight is not None:
            fans.append((self.context_weight, self.context_features))
        for weight, inputs in fans:
            nn.init.uniform_(weight, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
        nn.init.zeros_(self.in_bias)
        nn.init.zeros_(self.out_bias)
        if self.activation_scale is not None:
            nn.init.ones_(self.activation_scale)
        self._spread_mixtures()

    def config(self) -> dict[str, Any]:
        base = self._base_config()
        own = {
            "hidden_features": self.hidden_features,
            "activation": self.activation,
            "activation_scale": self.activation_scale is not None,
        }
        return {"event_shape": base.pop("event_shape"), **own, **base}

    def _in_bias(self, context: Tensor | None) -> Tensor:
        """(H), or (*batch, H) with a context (*batch, C)."""
        if context is None:
            return self.in_bias
        # Under autocast the product has a 16-bit dtype, but the op needs the dtype of its weights.
        return F.linear(context, self.context_weight, self.in_bias).to(self.dtype)

    @property
    def _structure(self) -> dict[str, Any]:
        """The keyword arguments that every NADE op takes."""
        return {
            "order": self.order,
            "in_offsets": self.in_offsets,
            "out_offsets": self.out_offsets,
            "activation_scale": self.activation_scale,
            "activation": self.activation,
        }

    def _parameters_of(self, x: Tensor, context: Tensor | None) -> Tensor:
        weights = self.in_weight, self._in_bias(context), self.out_weight, self.out_bias
        return functional.nade(x, *weights, **self._structure)

    def _log_prob(self, x: Tensor, context: Tensor | None, per_variable: bool) -> Tensor:
        weights = self.in_weight, self._in_bias(context), self.out_weight, self.out_bias
        arguments = self._structure | self._head_arguments()
        return functional.nade_log_prob(x, *weights, per_variable=per_variable, **arguments)

    def _begin(self, batch: torch.Size, context: Tensor | None) -> tuple[Tensor, ...]:
        return (self._in_bias(context).to(self.compute_dtype).expand(*batch, self.hidden_features),)

    def _rows(self, counts: int | list[int], position: int) -> slice:
        """The weight rows of the variable at position."""
        variable = self._variable(position)
        if isinstance(counts, int):
            return slice(variable * counts, (variable + 1) * counts)
        return slice(sum(counts[:variable]), sum(counts[: variable + 1]))

    def _append(self, tensors: tuple[Tensor, ...], position: int, value: Tensor) -> tuple[Tensor, ...]:
        variable = self._variable(position)
        each = len(self.in_weight) // self.variables
        first = variable * each if self.in_offsets is None else int(self.in_offsets[variable])
        if isinstance(self.head.of(variable), heads.Categorical):
            row, factor = chosen(value, self.head.sizes(self.variables)[variable], self.compute_dtype)
            return (tensors[0] + self.in_weight[first + row].to(self.compute_dtype) * factor.unsqueeze(-1),)
        row = self.in_weight[first].to(self.compute_dtype)
        return (tensors[0] + value.unsqueeze(-1).to(self.compute_dtype) * row,)

    def _next_parameters(self, tensors: tuple[Tensor, ...], position: int) -> Tensor:
        state, rows = tensors[0], self._rows(self.counts, position)
        if self.activation_scale is not None:
            state = state * self.activation_scale[self._variable(position)].to(self.compute_dtype)
        hidden = ACTIVATIONS[self.activation](state)
        weight, bias = self.out_weight[rows].to(self.compute_dtype), self.out_bias[rows].to(self.compute_dtype)
        return F.linear(hidden, weight, bias)

    def _sampler(self, request: Request) -> Sampler:
        def begin(rows: Rows) -> tuple[Tensor, dict[str, Any]]:
            bias = self.in_bias.to(self.compute_dtype)
            if rows.context is not None:
                bias = add_context(bias, rows.context.to(self.dtype), self.context_weight)
            return bias.expand(rows.count, -1).contiguous(), {}

        step = functools.partial(
            functional.nade_sample,
            in_weight=self.in_weight,
            out_weight=self.out_weight,
            out_bias=self.out_bias,
            variables=self.variables,
            **self._structure,
            **self._head_arguments(),
        )
        return Sampler(self.hidden_features, begin, step)

    def _set_output_bias(self, parameters: Tensor) -> None:
        self.out_bias.copy_(parameters.flatten())


class RNADE(NADE):
    r"""NADE for real variables: mixtures of Gaussians, rectified units, and a learnt activation scale per variable.

    .. math::
        p(x_i \mid x_{<i}) = \sum_k \pi_{ik} N(x_i; \mu_{ik}, \sigma_{ik}^2), \quad
        (\log \pi, \mu, \log \sigma)_i = b_i + V_i \max\big(0, s_i (c + \sum_{j < i} x_j W_j)\big)

    up to the normalisation of :math:`\pi`. Standardise the data with ``standardize``: scales below e^-7 are cut off.
    The scale s_i keeps the units in their range while the sum grows with i. It changes all activations at every
    position, so none can be skipped.

    Args:
        event_shape: shape of one event, an int or several; D is the product.
        hidden_features: H.
        components: K, the components of each mixture.
        activation: "sigmoid", "tanh" or "relu".
        activation_scale: learn s; else s is 1.
        head: None is heads.GaussianMixture(components); if given, it must be a GaussianMixture.
        order: (D) integers; None is ``orderings.raster(event_shape)``.
        context_features: C; 0 is no context.
        validate_args: check values; see :class:`AutoregressiveModel`.
        device: device of the parameters.
        dtype: dtype of the parameters: float32, float64, bfloat16 or float16.

    Raises:
        ValueError: for an argument that breaks a rule above.

    Source: Uria, Murray, Larochelle, "RNADE: The real-valued neural autoregressive density-estimator", NeurIPS 2013.

    Example:
        >>> model = RNADE(3, hidden_features=8, components=2)
        >>> x = model.sample(5, seed=0)
        >>> x.shape, model.log_prob(x).shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    _heads = (heads.GaussianMixture,)

    def __init__(
        self,
        event_shape: int | Sequence[int],
        hidden_features: int,
        components: int = 10,
        activation: str = "relu",
        *,
        activation_scale: bool = True,
        head: heads.Head | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(
            event_shape,
            hidden_features,
            activation,
            activation_scale=activation_scale,
            head=heads.GaussianMixture(components) if head is None else head,
            **arguments,
        )
