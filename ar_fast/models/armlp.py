"""ARMLP: a separate network with one hidden layer for every variable; nothing is shared."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import functional, heads
from .._integers import is_integer
from .._vocabulary import ACTIVATIONS
from ..heads.base import chosen, one_hot
from ..masks import Mask
from ._context import add_context
from ._memory import free_memory
from .base import AutoregressiveModel
from .sampling import Request, Rows, Sampler

__all__ = ["ARMLP"]

#: How many networks share one matrix of weights; armlp_block in csrc/kernels/armlp.h.
BLOCK = 8
# The attributes of a Mask that make up a nested plan.
_PLAN = "extents", "rows", "columns"


class ARMLP(AutoregressiveModel):
    r"""A network with one hidden layer and separate weights for every variable; NADE ties these weights.

    .. math::
        p(x_i \mid x_{<i}) = p_{\mathrm{head}}(x_i; \theta_i), \quad
        \theta_i = b_i + V_i \, f\big(c_i + U_i z + \sum_{j < i} x_j W_{ij}\big)

    with W = in_weight, c = in_bias, V = out_weight, b = out_bias, U = context_weight, z = context and f = activation;
    "<" is in the sense of the order. With a Categorical head variable j adds the row of its category. With binary
    variables there are D (D - 1) / 2 H + 2 D H + D weights, and evaluating or drawing an event takes as many
    multiply-adds (a draw skips zeros): memory and time grow with the square of D, where those of NADE grow with D.

    Everything is stored by position. Networks are stored in blocks of 8. For each input row that one of its networks
    sees, a block has one row of H weights per network in in_weight. Together they are one matrix, in which only the
    corner where inputs meet networks of their own block is masked (28 rows of H in a block of binary variables).
    Evaluation takes two matrix products per block. A gradient keeps the hidden units of the batch, B D H numbers:
    these are fewer than the weights as long as B < D / 2.

    Args:
        event_shape: shape of one event, an int or several; D is the product.
        hidden_features: H, the hidden units of each network.
        activation: "sigmoid", "tanh" or "relu".
        head: None is heads.Bernoulli().
        order: (D) integers; None is ``orderings.raster(event_shape)``.
        context_features: C; 0 is no context.
        validate_args: check values; see :class:`AutoregressiveModel`.
        device: device of the parameters.
        dtype: dtype of the parameters: float32, float64, bfloat16 or float16.

    Raises:
        ValueError: for an argument that breaks a rule above.
        MemoryError: if the parameters would not fit into the device's memory; nothing is allocated then.

    Source: Bengio and Bengio, "Modeling high-dimensional discrete data with multi-layer neural networks", NeurIPS 1999;
    untied as in Larochelle and Murray, AISTATS 2011, section 3.

    Example:
        >>> model = ARMLP((8, 8), hidden_features=10)
        >>> x = model.sample(16, seed=0)
        >>> x.shape, model.log_prob(x).shape
        (torch.Size([16, 8, 8]), torch.Size([16]))
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
        if not is_integer(hidden_features) or hidden_features < 1:
            raise ValueError(f"ARMLP: hidden_features must be a positive integer, got {hidden_features!r}")
        if activation not in ACTIVATIONS:
            names = ", ".join(ACTIVATIONS)
            raise ValueError(f"ARMLP: activation must be one of {names}, got {activation!r}")
        self._list_order()
        self.hidden_features = hidden_features = int(hidden_features)
        self.activation = activation
        self._gathers = isinstance(self.head, heads.Categorical)
        in_rows, out_rows = self._block_starts()[-1], self._offset_list()[-1]
        units = self.variables * hidden_features
        shapes = {
            "in_weight": (in_rows, hidden_features),
            "in_bias": (self.variables, hidden_features),
            "out_weight": (out_rows, hidden_features),
            "out_bias": (out_rows,),
        }
        if context_features:
            shapes["context_weight"] = (units, self.context_features)
        _check_memory(sum(map(math.prod, shapes.values())), in_rows, hidden_features, device, dtype)
        self.context_weight = None
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self._build()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform weights within 1 / sqrt(inputs) of zero, zero biases; the means of mixtures are spread out."""
        starts = self._block_starts()
        with torch.no_grad():
            for block, (begin, end) in enumerate(itertools.pairwise(starts)):
                bound = 1 / math.sqrt(max(1, block * BLOCK))
                self.in_weight[begin:end].uniform_(-bound, bound)
        nn.init.zeros_(self.in_bias)
        bound = 1 / math.sqrt(self.hidden_features)
        nn.init.uniform_(self.out_weight, -bound, bound)
        nn.init.zeros_(self.out_bias)
        if self.context_weight is not None:
            bound = 1 / math.sqrt(self.context_features)
            nn.init.uniform_(self.context_weight, -bound, bound)
        self._spread_mixtures()

    def config(self) -> dict[str, Any]:
        base = self._base_config()
        own = {"hidden_features": self.hidden_features, "activation": self.activation}
        return {"event_shape": base.pop("event_shape"), **own, **base}

    # Layout, by position.

    def _list_by_position(self, counts: int | list[int]) -> list[int]:
        if isinstance(counts, int):
            return [counts] * self.variables
        return [counts[variable] for variable in self._orders[0]]

    def _derive(self) -> dict[str, Tensor | None]:
        """The plans of the masks within blocks; blocks with the same numbers of inputs share a plan."""
        self._list_order()
        rows = self._input_list()
        plans: dict[Any, int] = {}
        #: The number of each block's plan; None if its networks see no inputs of the block itself.
        self._plan_of: list[int | None] = []
        derived = super()._derive()
        for begin, end in self._blocks():
            counts = tuple(rows[p + 1] - rows[p] for p in range(begin, end - 1))
            index = plans.setdefault((end - begin, counts), len(plans)) if counts else None
            self._plan_of.append(index)
            if index is not None and f"block_extents_{index}" not in derived:
                # The networks after a position see its input rows.
                place = torch.arange(end - begin)
                mask = Mask.from_degrees(
                    -place.repeat_interleave(self.hidden_features),
                    -1 - place[:-1].repeat_interleave(torch.tensor(counts)),
                )
                derived |= zip((f"block_{name}_{index}" for name in _PLAN), mask.plan[:3], strict=True)
        return derived

    def _list_order(self) -> None:
        # Kept as lists, since torch.compile treats a number read from a tensor as unknown.
        order = torch.arange(self.variables, device="cpu") if self._order is None else self._order
        #: The variable at each position, and the position of each variable.
        self._orders = order.tolist(), order.argsort().tolist()

    def _counts_by_position(self) -> list[int]:
        return self._list_by_position(self.counts)

    def _offset_list(self) -> list[int]:
        """The first parameter of each position, and at the end the number of all parameters."""
        return [0, *itertools.accumulate(self._counts_by_position())]

    def _input_list(self) -> list[int]:
        """The first input row of each position, and at the end the number of all input rows."""
        counts: int | list[int] = 1
        if self._gathers:
            counts = self.counts
        elif isinstance(self.head, heads.PerVariable):
            counts = self.head.inputs(self.variables)
        return [0, *itertools.accumulate(self._list_by_position(counts))]

    def _blocks(self) -> list[tuple[int, int]]:
        """First and last position of each block of networks, where the last is excluded."""
        return [(begin, min(begin + BLOCK, self.variables)) for begin in range(0, self.variables, BLOCK)]

    def _block_starts(self) -> list[int]:
        inputs = self._input_list()
        rows = [(end - begin) * inputs[end - 1] for begin, end in self._blocks()]
        return [0, *itertools.accumulate(rows)]

    def _masked_parameters(self) -> int:
        seen = sum(self._input_list()[:-1])
        return self.in_weight.numel() - seen * self.hidden_features

    def _offsets(self, offsets: list[int]) -> Tensor | None:
        return None if isinstance(self.counts, int) else torch.tensor(offsets, device=self.device)

    # Evaluation.

    def _inputs(self, x: Tensor, offsets: list[int]) -> Tensor:
        """x by position (B, D) -> (B, R_in), one column per input row; categories are one-hot."""
        if self.head_kinds is not None:
            return self._encoded(x, self._input_offsets(self.order), self.dtype)
        if not self._gathers:
            return x.to(self.dtype)
        bounds = torch.tensor(offsets, device=x.device)
        row, ones = chosen(x, bounds.diff(), self.dtype)
        return ones.new_zeros(x.shape[0], offsets[-1]).scatter(1, bounds[:-1] + row, ones)

    def _parameters_by_position(self, x: Tensor, context: Tensor | None, offsets: list[int]) -> Tensor:
        """(B, R_out) from x by position."""
        inputs, blocks = self._inputs(x, offsets), self._blocks()
        in_bias = self.in_bias.flatten()
        if context is not None:
            in_bias = F.linear(context, self.context_weight, in_bias).to(self.dtype)
        # torch.split instead of slices: the gradient of each slice is a zero tensor as large as all weights.
        starts, rows = self._block_starts(), self._input_list()
        weights = self.in_weight.split([end - begin for begin, end in itertools.pairwise(starts)])
        biases = in_bias.split([(end - begin) * self.hidden_features for begin, end in blocks], -1)
        sizes = [offsets[end] - offsets[begin] for begin, end in blocks]
        out_weights, out_biases = self.out_weight.split(sizes), self.out_bias.split(sizes)
        own = zip(self._plan_of, weights, biases, out_weights, out_biases, blocks, strict=True)
        parameters = [
            self._block(plan, inputs, weight, bias, out_weight, out_bias, block, offsets, rows)
            for plan, weight, bias, out_weight, out_bias, block in own
        ]
        return torch.cat(parameters, 1).to(self.compute_dtype)

    def _block(
        self,
        plan: int | None,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        out_weight: Tensor,
        out_bias: Tensor,
        positions: tuple[int, int],
        offsets: list[int],
        input_rows: list[int],
    ) -> Tensor:
        """The parameters of a block's positions, (B, their number)."""
        begin, end = positions
        networks, hidden = end - begin, self.hidden_features
        full, rows = input_rows[begin], input_rows[end - 1]
        matrix = weight.reshape(rows, networks * hidden)
        sums = bias + inputs[:, :full] @ matrix[:full]
        if plan is not None:
            mask = Mask(rows - full, networks * hidden, *(getattr(self, f"block_{name}_{plan}") for name in _PLAN))
            sums = sums + functional.masked_linear_grad_input(inputs[:, full:rows], matrix[full:], mask)
        units = ACTIVATIONS[self.activation](sums).unflatten(1, (networks, hidden))
        counts = [offsets[p + 1] - offsets[p] for p in range(begin, end)]
        if len(set(counts)) == 1:
            products = torch.einsum("bnh,nkh->bnk", units, out_weight.unflatten(0, (networks, -1))).flatten(1)
        else:
            own = out_weight.split(counts)
            products = torch.cat([F.linear(units[:, n], own[n]) for n in range(networks)], 1)
        return products + out_bias

    def _by_variable(self, by_position: Tensor) -> Tensor:
        return by_position if self.order is None else by_position.index_select(1, self.order.argsort())

    def _parameters_of(self, x: Tensor, context: Tensor | None) -> Tensor:
        offsets = self._offset_list()
        parameters = self._parameters_by_position(self._by_position(x, 1), context, offsets)
        if isinstance(self.counts, int):
            return self._by_variable(parameters.unflatten(1, (self.variables, -1))).flatten(1)
        own = parameters.split(self._counts_by_position(), 1)
        return torch.cat([own[position] for position in self._orders[1]], 1)

    def _log_prob(self, x: Tensor, context: Tensor | None, per_variable: bool) -> Tensor:
        offsets, x = self._offset_list(), self._by_position(x, 1)
        parameters = self._parameters_by_position(x, context, offsets)
        log_prob = functional.head_log_prob(
            parameters, x, offsets=self._offsets(offsets), **self._head_arguments(self.order)
        )
        if per_variable:
            return self._by_variable(log_prob)
        return log_prob.sum(1, dtype=torch.float64).to(self.compute_dtype)

    # State.tensors: the input rows of the known positions, and the first layer's biases including the context's part.

    def _begin(self, batch: torch.Size, context: Tensor | None) -> tuple[Tensor, ...]:
        bias = self.in_bias.flatten()
        if context is not None:
            bias = F.linear(context, self.context_weight, bias).to(self.dtype)
        bias = bias.unflatten(-1, self.in_bias.shape).to(self.compute_dtype).expand(*batch, -1, -1)
        return bias.new_zeros(*batch, 0), bias

    def _append(self, tensors: tuple[Tensor, ...], position: int, value: Tensor) -> tuple[Tensor, ...]:
        own = value.unsqueeze(-1)
        if isinstance(self.head.of(self._variable(position)), heads.Categorical):
            own = one_hot(value, self._counts_by_position()[position], self.compute_dtype)
        return torch.cat([tensors[0], own.to(tensors[0].dtype)], -1), tensors[1]

    def _next_parameters(self, tensors: tuple[Tensor, ...], position: int) -> Tensor:
        inputs, bias = tensors
        offsets, block = self._offset_list(), position // BLOCK
        begin, end = self._blocks()[block]
        first, stop = self._block_starts()[block : block + 2]
        weight = self.in_weight[first:stop].unflatten(0, (-1, end - begin))[: inputs.shape[-1], position - begin]
        hidden = ACTIVATIONS[self.activation](inputs @ weight.to(inputs.dtype) + bias[..., position, :])
        own = slice(offsets[position], offsets[position + 1])
        return F.linear(hidden, self.out_weight[own].to(inputs.dtype), self.out_bias[own].to(inputs.dtype))

    # Sampling.

    def _sampler(self, request: Request) -> Sampler:
        def begin(rows: Rows) -> tuple[Tensor, dict[str, Any]]:
            state = torch.zeros(rows.count, self.variables, dtype=self.compute_dtype, device=self.device)
            bias = self.in_bias.to(self.compute_dtype)
            if rows.context is not None:
                flat = add_context(bias.flatten(), rows.context.to(self.dtype), self.context_weight)
                bias = flat.unflatten(-1, bias.shape)
            return state, {"in_bias": bias}

        step = functools.partial(
            functional.armlp_sample,
            in_weight=self.in_weight,
            block_starts=torch.tensor(self._block_starts(), device=self.device),
            out_weight=self.out_weight,
            out_bias=self.out_bias,
            order=self.order,
            offsets=self._offsets(self._offset_list()),
            in_offsets=self._input_offsets(self.order),
            activation=self.activation,
            **self._head_arguments(self.order),
        )
        # With a context each row has its own biases.
        return Sampler(self.variables * (self.hidden_features if self.context_features else 1), begin, step)

    def _set_output_bias(self, parameters: Tensor) -> None:
        self.out_bias.copy_(self._parameters_by(self.order, parameters))


def _check_memory(
    numbers: int, rows: int, hidden: int, device: torch.device | str | None, dtype: torch.dtype | None
) -> None:
    device = torch.get_default_device() if device is None else torch.device(device)
    needed, free = numbers * (dtype or torch.get_default_dtype()).itemsize, free_memory(device)
    if free is not None and needed > free:
        raise MemoryError(
            f"ARMLP: the parameters must fit into the memory of {device}, {free / 2**30:.3g} GiB free, got "
            f"{needed / 2**30:.3g} GiB: {rows:,} rows of {hidden} input weights, about D (D - 1) / 2. NADE ties them "
            "and has D rows"
        )
