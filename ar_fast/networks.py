"""Masked networks: autoencoders whose layers are masked by an ordering, for MADE and the conditioners of flows."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import functional
from ._integers import integers
from ._vocabulary import MLP_ACTIVATIONS
from .masks import Mask
from .nn import MaskedLinear

__all__ = ["MaskedNetwork", "check_degrees", "check_hidden_features", "even_degrees", "gathered", "sharing"]

MAX_HIDDEN_LAYERS = 16


class MaskedNetwork(nn.Module):
    """The layers of a masked network: a base class for modules that say which degrees their units have.

    The module calls ``_make_layers`` once and ``_set_masks`` whenever degrees change. The layers have the same names in
    its state_dict.

    Attributes:
        hidden_features: units of each hidden layer.
        activation: name of the activation.
        residual: whether the output of every two hidden layers after the first is added to their input.
        layers: a :class:`MaskedLinear` for each hidden layer, and one for the outputs.
        direct: the :class:`MaskedLinear` from the inputs to the outputs, or None.
        context_weight: (units of the first layer, C), or None.
    """

    hidden_features: list[int]
    activation: str
    residual: bool
    layers: Any  # an nn.ModuleList of MaskedLinear
    direct: MaskedLinear | None
    context_weight: nn.Parameter | None
    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """What the module that is a MaskedNetwork has of its own: its dtype and the derived tensors."""

    #: Whether inputs, units and outputs are not stored by ascending degree; ``_places`` then holds where they are.
    _by_variable = False

    def _make_layers(
        self,
        units: Sequence[int],
        direct: bool,
        context_features: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Makes the parameters; ``units`` counts the inputs, the units of each hidden layer, and the outputs."""
        self.layers = nn.ModuleList(
            MaskedLinear(inputs, outputs, Mask.dense(outputs, inputs), device=device, dtype=dtype, activation=own)
            for (inputs, outputs), own in zip(
                itertools.pairwise(units), self._activations(context_features > 0), strict=True
            )
        )
        self.direct = None
        if direct:
            inputs, outputs = units[0], units[-1]
            self.direct = MaskedLinear(
                inputs, outputs, Mask.dense(outputs, inputs), bias=False, device=device, dtype=dtype
            )
        self.context_weight = None
        if context_features:
            self.context_weight = nn.Parameter(
                torch.empty(self.hidden_features[0], context_features, device=device, dtype=dtype)
            )

    def _set_masks(self, degrees: Sequence[Tensor]) -> None:
        """Masks the layers; ``degrees`` are those of the inputs, of each hidden layer's units, and of the outputs."""
        for layer, (below, own) in zip(self.layers, itertools.pairwise(degrees), strict=True):
            layer.set_mask(Mask.from_degrees(below, own))
        if self.direct is not None:
            self.direct.set_mask(Mask.from_degrees(degrees[0], degrees[-1]))

    def _activations(self, has_context: bool) -> list[str | None]:
        """The activation that each layer applies itself; None for outputs, and where another term is added first."""
        hidden = len(self.hidden_features)
        if self.residual:
            fused = [layer % 2 == 1 for layer in range(hidden)]
        else:
            fused = [layer > 0 or not has_context for layer in range(hidden)]
        return [self.activation if here else None for here in (*fused, False)]

    def _activate(self, hidden: Tensor) -> Tensor:
        return MLP_ACTIVATIONS[self.activation](hidden)

    def _outputs(self, columns: Tensor, context: Tensor | None) -> Tensor:
        """(B, R_in) and (B, C) -> (B, R_out), as stored."""
        first_layer, *hidden_layers, last_layer = self.layers
        hidden = first_layer(columns)
        if context is not None:
            hidden = hidden + F.linear(context, self.context_weight)
        if self.residual:
            for first, second in zip(hidden_layers[::2], hidden_layers[1::2], strict=True):
                hidden = hidden + second(first(self._activate(hidden)))
            hidden = self._activate(hidden)
        else:
            if context is not None:
                hidden = self._activate(hidden)
            for layer in hidden_layers:
                hidden = layer(hidden)
        parameters = last_layer(hidden)
        if self.direct is not None:
            parameters = parameters + self.direct(columns)
        return parameters

    @property
    def _terms(self) -> list[MaskedLinear]:
        """The masked layers in the order in which the program reads them."""
        return [*self.layers, *([] if self.direct is None else [self.direct])]

    @functools.cached_property
    def _program(self) -> list[functional.MlpLayer]:
        """The layers as :func:`functional.masked_mlp_sample` takes them."""
        if self.residual:
            program, state = [functional.MlpLayer((0,), activated=False)], 1
            for _ in range(len(self.hidden_features) // 2):
                program += [
                    functional.MlpLayer(add=state),
                    functional.MlpLayer((state + 1,)),
                    functional.MlpLayer((state + 2,), add=state, activated=False),
                ]
                state += 3
            program.append(functional.MlpLayer(add=state))
        else:
            program = [functional.MlpLayer((layer,)) for layer in range(len(self.hidden_features))]
        inputs = (len(program),) if self.direct is None else (len(program), 0)
        return [*program, functional.MlpLayer(inputs, activated=False)]

    def _units(self, index: int, start: int, end: int, values: Sequence[Tensor]) -> Tensor:
        """Pre-activations of units start ... end-1 of a layer of the program, computed from the units they see."""
        layer = self._program[index]
        term = sum(len(before.sources) for before in self._program[:index])
        sums = [self._rows(term + k, start, end, values[source]) for k, source in enumerate(layer.sources)]
        return functools.reduce(torch.add, sums if layer.add is None else [*sums, values[layer.add][..., start:end]])

    def _rows(self, term: int, start: int, end: int, below: Tensor) -> Tensor:
        """Outputs start ... end-1 of a masked layer, sorted by position or degree."""
        layer, seen = self._terms[term], below.shape[-1]
        rows, columns = slice(start, end), slice(seen)
        if self._by_variable:
            source, own = (term, term + 1) if term < len(self.layers) else (0, len(self.layers))
            rows, columns = self._places(own)[rows], self._places(source)[columns]
        mask = torch.arange(seen, device=below.device) < layer.mask.extents[rows, None]
        weight = torch.where(mask, layer.weight[rows][:, columns], 0.0).to(self.compute_dtype)
        bias = None if layer.bias is None else layer.bias[rows].to(self.compute_dtype)
        return F.linear(below, weight, bias)

    @property
    def _unit_ends(self) -> list[Tensor]:
        """``unit_ends`` of each layer of the program except the last."""
        if self.residual:
            return [self.unit_ends_0] * (len(self._program) - 1)
        return [getattr(self, f"unit_ends_{index}") for index in range(len(self.hidden_features))]


def sharing(layer: MaskedLinear) -> MaskedLinear:
    """A layer that has its own mask but shares the parameters of another layer."""
    return MaskedLinear.from_linear(layer, layer.mask, activation=layer.activation)


def gathered(layer: MaskedLinear, rows: Tensor, columns: Tensor) -> MaskedLinear:
    """A layer made of these rows and columns of the weight; its mask still has to be set."""
    mask = Mask.dense(layer.out_features, layer.in_features)
    sizes, bias = (layer.in_features, layer.out_features), layer.bias is not None
    other = MaskedLinear(*sizes, mask, bias=bias, device="meta", activation=layer.activation)
    other.weight = nn.Parameter(
        layer.weight.detach().index_select(0, rows).index_select(1, columns), requires_grad=False
    )
    if layer.bias is not None:
        other.bias = nn.Parameter(layer.bias.detach()[rows], requires_grad=False)
    return other


def check_hidden_features(model: str, given: Sequence[int]) -> list[int]:
    units = integers(given)
    if not units or len(units) > MAX_HIDDEN_LAYERS or min(units) < 1:
        raise ValueError(f"{model}: hidden_features must be 1 to {MAX_HIDDEN_LAYERS} positive integers, got {given!r}")
    return units


def even_degrees(units: int, lowest: int, highest: int) -> Tensor:
    return lowest + (2 * torch.arange(units) + 1) * (highest - lowest + 1) // (2 * units)


def check_degrees(
    model: str, given: Sequence[Tensor | Sequence[int]], hidden_features: list[int], variables: int
) -> list[Tensor]:
    degrees = [torch.as_tensor(layer).cpu() for layer in given]
    shapes = [tuple(layer.shape) for layer in degrees]
    if shapes != [(units,) for units in hidden_features]:
        raise ValueError(f"{model}: degrees must have one entry per unit of {hidden_features}, got shapes {shapes}")
    for layer in degrees:
        if layer.is_floating_point() or bool(((layer < 0) | (layer >= variables)).any()):
            raise ValueError(f"{model}: degrees must be integers in 0 ... {variables - 1}, got {layer.tolist()}")
    return [layer.to(torch.int64).sort().values for layer in degrees]
