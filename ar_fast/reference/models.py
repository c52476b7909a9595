"""The models in plain torch: each loads the state_dict of its namesake in ``ar_fast.models``."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .draws import draw
from .heads import bernoulli_log_prob
from .ops import ACTIVATIONS, MLP_ACTIVATIONS, offset_inputs, offset_taps


class _ReferenceModel(nn.Module):
    variables: int
    order: Tensor | None
    out_bias: Any

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, D) of 0 and 1 -> (B,) in nats."""
        return bernoulli_log_prob(self(x, context), x).sum(1)

    @torch.no_grad()
    def sample(self, n: int, context: Tensor | None = None, *, seed: int, temperature: float = 1.0) -> Tensor:
        """n rows, (n, D), by D full evaluations; context: (C,). The uniform numbers are those of the fast models."""
        x = self.out_bias.new_zeros(n, self.variables)
        for p in range(self.variables):
            i = torch.tensor(p) if self.order is None else self.order[p]
            logits = self(x, None if context is None else context.expand(n, -1))[:, i]
            x[:, i] = draw(logits.unsqueeze(-1), i.to(x.device), seed, 0, temperature, None, None)[0]
        return x


class ReferenceFVSBN(_ReferenceModel):
    """p(x_i = 1 | x_<i) = sigmoid(bias_i + sum_{j<i} x_j weight_ji): a logistic regression per variable.

    "<" is in the sense of ``order``. Weights are stored by place, the last position first: row q and column q belong to
    the variable at position D-1-q, so what row q adds is before column q.
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
    """p(x_i = 1 | x_<i) = sigmoid(b_i + v_i . f(c_i + sum_{j<i} x_j W_ij)): a separate network for each variable.

    "<" is in the sense of ``order``, and everything is stored by position. Networks are stored in blocks of 8: a block
    has, for each position that its last network sees, one row of in_weight for each of its networks.
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
        # The row of in_weight for each network and each position before it.
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

    "<" is in the sense of ``order``. Source: Larochelle and Murray, AISTATS 2011.
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
    """An ordinary network. Its inputs are x, with zeros where it is not observed, and the mask of observed variables;
    its outputs are the logits of all variables. A variable's conditional observes those before it in ``order``.

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

    Positions are in the grid's raster order, with the channels of a pixel adjacent; ``offset_inputs`` says which
    positions each one sees. Output weights are shared over pixels, or there is one row for each variable.
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
    """An autoencoder whose weights are masked so that output p sees only the inputs before p.

    A hidden unit of degree e sees the variables at positions 0 ... e-1 and the units of the previous layer with degree
    at most e. The outputs at positions e and above see it. Source: Germain et al., ICML 2015.
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
        """degrees: for each hidden layer the degrees of its units, as in ``ar_fast.models.MADE.degrees``.

        by_variable: whether weights are stored by variable, instead of by position.
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
    def out_bias(self) -> Any:
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
