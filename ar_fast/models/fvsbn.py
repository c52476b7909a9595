"""FVSBN: one linear model per variable."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _library, functional, heads
from .._structure import starts
from ..heads.base import chosen
from ..masks import Mask
from ._context import add_context
from .base import AutoregressiveModel
from .sampling import Request, Rows, Sampler

__all__ = ["FVSBN"]


class FVSBN(AutoregressiveModel):
    r"""The fully visible sigmoid belief network: every variable is a (generalised) linear model of the earlier ones.

    .. math::
        p(x_i \mid x_{<i}) = p_{\mathrm{head}}(x_i; \theta_i), \quad
        \theta_i = b_i + U_i z + \sum_{j < i} x_j W_{ji}

    with W = weight, b = bias, U = context_weight and z = context; "<" is in the sense of the order. With a Categorical
    head variable j adds the row of W that belongs to its category. With binary variables D (D - 1) / 2 + D parameters
    have an effect, and an evaluation takes as many multiply-adds; drawing an event adds one weight row, up to its
    diagonal, for each nonzero value.

    Weights are stored by place, where place q is position D - 1 - q: the last variable comes first. Row q of weight is
    what a value at place q adds to the parameters of the variables after it when it is drawn. Its part before column q
    has an effect and is contiguous. So the mask is a staircase, and no product touches the masked half, which has no
    effect whatever it holds.

    Args:
        event_shape: shape of one event, an int or several; D is the product.
        head: None is heads.Bernoulli().
        order: (D) integers; None is ``orderings.raster(event_shape)``.
        context_features: C; 0 is no context.
        validate_args: check values; see :class:`AutoregressiveModel`.
        device: device of the parameters.
        dtype: dtype of the parameters: float32, float64, bfloat16 or float16.

    Raises:
        ValueError: for an argument that breaks a rule above.

    Source: Frey, Hinton, Dayan, "Does the wake-sleep algorithm produce good density estimators?", NeurIPS 1995.

    Example:
        >>> model = FVSBN((28, 28))
        >>> x = model.sample(16, seed=0)
        >>> x.shape, model.log_prob(x).shape
        (torch.Size([16, 28, 28]), torch.Size([16]))
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
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
        self._gathers = isinstance(self.head, heads.Categorical)
        out_rows = self.counts * self.variables if isinstance(self.counts, int) else sum(self.counts)
        in_rows = sum(self.head.inputs(self.variables))
        self.weight = nn.Parameter(torch.empty(in_rows, out_rows, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_rows, device=device, dtype=dtype))
        self.context_weight = None
        if context_features:
            self.context_weight = nn.Parameter(torch.empty(out_rows, context_features, device=device, dtype=dtype))
        self._build()
        self.reset_parameters()

    def _derive(self) -> dict[str, Tensor | None]:
        # If variables differ in K, the mask depends on the order.
        own: dict[str, Tensor | None] = {"_counts": None, "_uniform_extents": None}
        if isinstance(self.counts, int):
            first = self.counts * torch.arange(self.variables)
            own["_uniform_extents"] = first.repeat_interleave(self.counts if self._gathers else 1).to(torch.int32)
        else:
            own["_counts"] = torch.tensor(self.counts)
            order = list(range(self.variables)) if self._order is None else self._order.tolist()
            #: How many parameters each place has, and the place of each variable.
            self._sizes_by_place = [self.counts[variable] for variable in reversed(order)]
            self._place_of = [self.variables - 1 - position for position in torch.tensor(order).argsort().tolist()]
        return super()._derive() | own

    def reset_parameters(self) -> None:
        """Zero weights, which make all variables independent; the means of mixtures are spread out."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        self._spread_mixtures()

    def config(self) -> dict[str, Any]:
        return self._base_config()

    def _masked_parameters(self) -> int:
        return self.weight.numel() - self._mask(self._offsets()).count()

    # Places.

    @property
    def _places(self) -> Tensor:
        """(D), the variable at each place."""
        if self.order is None:
            return torch.arange(self.variables - 1, -1, -1, device=self.device)
        return self.order.flip(0)

    def _by_place(self, x: Tensor) -> Tensor:
        """(B, D) by variable -> by place. A flip is cheaper than a gather."""
        return x.flip(1) if self.order is None else x.index_select(1, self._places)

    def _by_variable(self, by_place: Tensor) -> Tensor:
        """(B, D, ...) by place -> by variable."""
        return by_place.flip(1) if self.order is None else by_place.index_select(1, self._places.argsort())

    def _offsets(self) -> Tensor | None:
        """(D + 1), the first parameter of each place; None if all places have the same number."""
        if self._counts is None:
            return None
        return F.pad(self._counts[self._places].cumsum(0), (1, 0))

    def _extents(self, first: Tensor) -> Tensor:
        """How many parameters each row of weight affects, those of lower places; ``first`` (D) is by place."""
        if self._gathers:
            counts = self.counts if isinstance(self.counts, int) else self._counts[self._places]
            first = first.repeat_interleave(counts, output_size=len(self.weight))
        elif self.input_counts is not None:
            first = first.repeat_interleave(self.input_counts[self._places], output_size=len(self.weight))
        return first.to(torch.int32)

    @property
    def _mixed_places(self) -> Tensor | None:
        """The variable at each place if the head is per_variable, else None."""
        return None if self.head_kinds is None else self._places

    def _mask(self, offsets: Tensor | None) -> Mask:
        extents = self._uniform_extents if offsets is None else self._extents(offsets[:-1])
        return Mask(self.weight.shape[0], self.weight.shape[1], extents=extents)

    def _columns(self, offsets: Tensor | None, place: int) -> slice:
        """The parameters of a place."""
        if offsets is None:
            return slice(place * self.counts, (place + 1) * self.counts)
        return slice(int(offsets[place]), int(offsets[place + 1]))

    # Evaluation.

    def _inputs(self, x: Tensor, offsets: Tensor | None) -> Tensor:
        """x by place (B, D) -> (B, R_in), one column per row of weight; categories are one-hot."""
        if self.head_kinds is not None:
            return self._encoded(x, self._input_offsets(self._places), self.dtype)
        if not self._gathers:
            return x.to(self.dtype)
        place = torch.arange(self.variables, device=x.device)
        counts: Any = self.counts if offsets is None else offsets.diff()
        first = counts * place if offsets is None else offsets[:-1]
        row, ones = chosen(x, counts, self.dtype)
        return ones.new_zeros(x.shape[0], len(self.weight)).scatter(1, row + first, ones)

    def _parameters_by_place(self, x: Tensor, context: Tensor | None, offsets: Tensor | None) -> Tensor:
        """(B, R_out) from x by place."""
        sums = functional.masked_linear_grad_input(self._inputs(x, offsets), self.weight, self._mask(offsets))
        if context is not None:
            sums = sums + F.linear(context, self.context_weight)
        return sums.to(self.compute_dtype) + self.bias.to(self.compute_dtype)

    def _parameters_of(self, x: Tensor, context: Tensor | None) -> Tensor:
        offsets = self._offsets()
        parameters = self._parameters_by_place(self._by_place(x), context, offsets)
        if offsets is None:
            return self._by_variable(parameters.unflatten(1, (self.variables, -1))).flatten(1)
        by_place = parameters.split(self._sizes_by_place, 1)
        return torch.cat([by_place[place] for place in self._place_of], 1)

    def _log_prob(self, x: Tensor, context: Tensor | None, per_variable: bool) -> Tensor:
        offsets, x = self._offsets(), self._by_place(x)
        parameters = self._parameters_by_place(x, context, offsets)
        log_prob = functional.head_log_prob(parameters, x, offsets=offsets, **self._head_arguments(self._mixed_places))
        if per_variable:
            return self._by_variable(log_prob)
        return log_prob.sum(1, dtype=torch.float64).to(self.compute_dtype)

    # State.tensors: the parameters by place, each summed over the known variables.

    def _begin(self, batch: torch.Size, context: Tensor | None) -> tuple[Tensor, ...]:
        state = self.bias.to(self.compute_dtype)
        if context is not None:
            state = state + F.linear(context, self.context_weight).to(self.compute_dtype)
        return (state.expand(*batch, -1),)

    def _append(self, tensors: tuple[Tensor, ...], position: int, value: Tensor) -> tuple[Tensor, ...]:
        state, place = tensors[0], self.variables - 1 - position
        own = self._columns(self._offsets(), place)
        inputs = self._input_offsets(self._mixed_places)
        first = own.start if self._gathers else place if inputs is None else int(inputs[place])
        if isinstance(self.head.of(self._variable(position)), heads.Categorical):
            row, factor = chosen(value, own.stop - own.start, state.dtype)
            added = self.weight[first + row, : own.start].to(state.dtype) * factor.unsqueeze(-1)
        else:
            added = value.unsqueeze(-1).to(state.dtype) * self.weight[first, : own.start].to(state.dtype)
        return (torch.cat([state[..., : own.start] + added, state[..., own.start :]], -1),)

    def _next_parameters(self, tensors: tuple[Tensor, ...], position: int) -> Tensor:
        return tensors[0][..., self._columns(self._offsets(), self.variables - 1 - position)]

    # Sampling.

    def _sampler(self, request: Request) -> Sampler:
        return self._cuda_sampler() if _library.runs_cuda(self.device) else self._cpu_sampler()

    def _row_bias(self, rows: Rows) -> Tensor:
        """(R_out) by place, or (B, R_out) with a context."""
        bias = self.bias.to(self.compute_dtype)
        if rows.context is None:
            return bias
        return add_context(bias, rows.context.to(self.dtype), self.context_weight)

    def _cpu_sampler(self) -> Sampler:
        """A masked perceptron without hidden layers; its arguments are by position, except its weight."""
        columns = len(self.weight)

        def begin(rows: Rows) -> tuple[Tensor, dict[str, Any]]:
            state = torch.zeros(rows.count, columns, dtype=self.compute_dtype, device=self.device)
            return state, {"biases": [self._parameters_by_position(self._row_bias(rows))]}

        counts = self._counts
        if counts is not None and self.order is not None:
            counts = counts[self.order]
        offsets = None if counts is None else starts(counts)
        step = functools.partial(
            functional.masked_mlp_sample,
            weights=[self.weight],
            extents=[],
            unit_ends=[],
            by_input=True,
            variables=self.variables,
            order=self.order,
            in_offsets=offsets if self._gathers else self._input_offsets(self.order),
            out_offsets=offsets,
            **self._head_arguments(self.order),
        )
        return Sampler(columns, begin, step)

    def _parameters_by_position(self, parameters: Tensor) -> Tensor:
        """(..., R_out) by place -> by position."""
        if isinstance(self.counts, int):
            return parameters.unflatten(-1, (self.variables, -1)).flip(-2).flatten(-2)
        return torch.cat(parameters.split(self._sizes_by_place, -1)[::-1], -1)

    def _cuda_sampler(self) -> Sampler:
        def begin(rows: Rows) -> tuple[Tensor, dict[str, Any]]:
            return self._row_bias(rows).expand(rows.count, -1).contiguous(), {}

        step = functools.partial(
            functional.fvsbn_sample,
            weight=self.weight,
            variables=self.variables,
            order=self.order,
            offsets=self._offsets(),
            in_offsets=self._input_offsets(self._mixed_places),
            **self._head_arguments(self._mixed_places),
        )
        return Sampler(len(self.bias), begin, step)

    def _set_output_bias(self, parameters: Tensor) -> None:
        self.bias.copy_(self._parameters_by(self._places, parameters))
