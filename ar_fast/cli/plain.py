"""The demo's models in plain PyTorch, written as well as a loop over variables can be: what ar_fast is timed against.

They are the teaching twins of `ar_fast.reference`, with two changes that only concern speed: rows of the weights come
from `unbind`, whose gradient is one `stack` (indexing them fills a zero matrix for every variable), and NADE's sampling
carries its hidden state along instead of evaluating the whole model for every variable.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models import MADE, NADE
from ..reference import ACTIVATIONS, MLP_ACTIVATIONS, ReferenceMADE, ReferenceNADE


class _Images:
    """Takes images (B, *event_shape) of any dtype where the twins take rows (B, D)."""

    def log_prob(self, x: Tensor) -> Tensor:
        return super().log_prob(x.flatten(1).to(self.out_bias.dtype))


class PlainNADE(_Images, ReferenceNADE):
    def forward(self, x: Tensor, context: None = None) -> Tensor:
        """The logits, (B, D)."""
        activation = ACTIVATIONS[self.activation]
        state, logits = self.in_bias.expand(len(x), -1), []
        for column, in_row, out_row in zip(
            x.unbind(1), self.in_weight.unbind(0), self.out_weight.unbind(0), strict=True
        ):
            logits.append(activation(state) @ out_row)
            state = torch.addr(state, column, in_row)
        return torch.stack(logits, 1) + self.out_bias

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """n rows, (n, D), in one pass: the hidden state is updated in place."""
        activation = ACTIVATIONS[self.activation]
        state = self.in_bias.expand(n, -1).clone()
        x = self.out_bias.new_empty(self.variables, n)
        for column, in_row, out_row, bias in zip(x, self.in_weight, self.out_weight, self.out_bias, strict=True):
            torch.bernoulli(torch.sigmoid(torch.addmv(bias, activation(state), out_row)), out=column)
            state.addr_(column, in_row)
        return x.T


class PlainMADE(_Images, ReferenceMADE):
    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """n rows, (n, D), by one network pass for every variable, with weights masked beforehand."""
        activation = MLP_ACTIVATIONS[self.activation]
        weights = [layer.weight * mask.to(layer.weight) for layer, mask in zip(self.layers, self.masks, strict=True)]
        x = self.out_bias.new_zeros(n, self.variables)
        for i in range(self.variables):
            hidden = x
            for layer, weight in zip(self.layers[:-1], weights[:-1], strict=True):
                hidden = activation(F.linear(hidden, weight, layer.bias))
            x[:, i] = torch.bernoulli(torch.sigmoid(torch.addmv(self.out_bias[i], hidden, weights[-1][i])))
        return x


def plain_twin(model: NADE | MADE) -> PlainNADE | PlainMADE:
    """The same model in plain PyTorch, with a copy of its parameters. Raster order only."""
    if isinstance(model, NADE):
        twin = PlainNADE(model.variables, model.hidden_features, activation=model.activation)
    else:
        twin = PlainMADE(model.variables, model.degrees, activation=model.activation)
    twin.load_state_dict(model.state_dict())
    return twin.to(model.device)
