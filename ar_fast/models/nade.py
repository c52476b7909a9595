"""NADE: one network per variable, with shared weights, in O(H) per variable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import functional, heads, reference
from ._context import add_context
from .base import AutoregressiveModel

__all__ = ["NADE"]


class NADE(AutoregressiveModel):
    r"""The neural autoregressive distribution estimator.

    .. math::
        p(x_i = 1 \mid x_{<i}) = \mathrm{sigmoid}\Big(b_i + V_i \cdot f\big(c + U z + \sum_{j < i} x_j W_j\big)\Big)

    with W = in_weight, c = in_bias, V = out_weight, b = out_bias, U = context_weight, z = context and f = activation;
    "before" is in the sense of the order. D (2 H + 1) + H parameters, and H C for a context; evaluating and drawing an
    event both cost O(D H).

    Args:
        event_shape: shape of one event, an int or several; D is the product.
        hidden_features: H.
        activation: "sigmoid", "tanh" or "relu".
        head: None is heads.Bernoulli().
        order: (D) integers; None is ``orderings.raster(event_shape)``.
        context_features: C; 0 is no context.
        validate_args: check values; see :class:`AutoregressiveModel`.
        device: of the parameters.
        dtype: of the parameters: float32, float64, bfloat16 or float16.

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

    def __init__(
        self,
        event_shape: int | Sequence[int],
        hidden_features: int,
        activation: str = "sigmoid",
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
        if not isinstance(hidden_features, int) or hidden_features < 1:
            raise ValueError(f"NADE: hidden_features must be a positive integer, got {hidden_features!r}")
        if activation not in reference.ACTIVATIONS:
            names = ", ".join(reference.ACTIVATIONS)
            raise ValueError(f"NADE: activation must be one of {names}, got {activation!r}")
        self.hidden_features = hidden_features
        self.activation = activation
        variables = self.variables
        self.in_weight = nn.Parameter(torch.empty(variables, hidden_features, device=device, dtype=dtype))
        self.in_bias = nn.Parameter(torch.empty(hidden_features, device=device, dtype=dtype))
        self.out_weight = nn.Parameter(torch.empty(variables, hidden_features, device=device, dtype=dtype))
        self.out_bias = nn.Parameter(torch.empty(variables, device=device, dtype=dtype))
        self.context_weight = None
        if context_features:
            self.context_weight = nn.Parameter(
                torch.empty(hidden_features, context_features, device=device, dtype=dtype)
            )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform weights within 1 / sqrt(inputs) of zero, zero biases."""
        fans = [(self.in_weight, self.variables), (self.out_weight, self.hidden_features)]
        if self.context_weight is not None:
            fans.append((self.context_weight, self.context_features))
        for weight, inputs in fans:
            nn.init.uniform_(weight, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
        nn.init.zeros_(self.in_bias)
        nn.init.zeros_(self.out_bias)

    def config(self) -> dict[str, Any]:
        base = self._base_config()
        own = {"hidden_features": self.hidden_features, "activation": self.activation}
        return {"event_shape": base.pop("event_shape"), **own, **base}

    def _in_bias(self, context: Tensor | None) -> Tensor:
        """(H), or (*batch, H) with a context (*batch, C)."""
        if context is None:
            return self.in_bias
        # Under autocast the product has 16 bits; the op wants the dtype of its weights.
        return F.linear(context, self.context_weight, self.in_bias).to(self.dtype)

    def _parameters_of(self, x: Tensor, context: Tensor | None) -> Tensor:
        logits = functional.nade(
            x,
            self.in_weight,
            self._in_bias(context),
            self.out_weight,
            self.out_bias,
            order=self.order,
            activation=self.activation,
        )
        return logits.unsqueeze(-1)

    def _log_prob(self, x: Tensor, context: Tensor | None, per_variable: bool) -> Tensor:
        return functional.nade_log_prob(
            x,
            self.in_weight,
            self._in_bias(context),
            self.out_weight,
            self.out_bias,
            order=self.order,
            activation=self.activation,
            per_variable=per_variable,
        )

    def _begin(self, batch: torch.Size, context: Tensor | None) -> tuple[Tensor, ...]:
        return (self._in_bias(context).to(self.compute_dtype).expand(*batch, self.hidden_features),)

    def _append(self, tensors: tuple[Tensor, ...], position: int, value: Tensor) -> tuple[Tensor, ...]:
        row = self.in_weight[self._variable(position)].to(self.compute_dtype)
        return (tensors[0] + value.unsqueeze(-1) * row,)

    def _next_parameters(self, tensors: tuple[Tensor, ...], position: int) -> Tensor:
        variable = self._variable(position)
        hidden = reference.ACTIVATIONS[self.activation](tensors[0])
        logit = hidden @ self.out_weight[variable].to(self.compute_dtype) + self.out_bias[variable]
        return logit.unsqueeze(-1)

    @property
    def _state_features(self) -> int:
        return self.hidden_features

    def _sample_state(self, rows: int, context: Tensor | None) -> tuple[Tensor, None]:
        bias = self.in_bias.to(self.compute_dtype)
        if context is not None:
            bias = add_context(bias, context.to(self.dtype), self.context_weight)
        return bias.expand(rows, -1).contiguous(), None

    def _sample_chunk(self, state: Tensor, extra: None, **arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return functional.nade_sample(
            state,
            self.in_weight,
            self.out_weight,
            self.out_bias,
            order=self.order,
            activation=self.activation,
            **arguments,
        )

    def _set_output_bias(self, parameters: Tensor) -> None:
        self.out_bias.copy_(parameters.squeeze(-1))
