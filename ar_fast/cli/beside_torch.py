"""The demo's models in plain PyTorch. Both versions are timed step by step in one run: equal losses, different times.

The plain models are the teaching models of `ar_fast.reference` with two changes that make them as fast as a loop over
variables can be. Rows of the weights come from `unbind`, whose gradient is one `stack` (indexing them fills a zero
matrix for every variable), and NADE's sampling carries its hidden state along instead of evaluating the whole model for
every variable.
"""

import copy
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._progress import progress_bar
from ..models import MADE, NADE
from ..reference import ACTIVATIONS, MLP_ACTIVATIONS, ReferenceMADE, ReferenceNADE
from ..tasks._timing import interleave
from ..tasks.training import Settings, make_optimizer, train_step


class PlainNADE(ReferenceNADE):
    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: images (B, *event_shape) of any dtype -> (B,) in nats."""
        return super().log_prob(x.flatten(1).to(self.out_bias.dtype), context)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
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
    def draw(self, n: int) -> Tensor:
        """n rows, (n, D), drawn in one pass: the hidden state is updated in place."""
        activation = ACTIVATIONS[self.activation]
        state = self.in_bias.expand(n, -1).clone()
        x = self.out_bias.new_empty(self.variables, n)
        for column, in_row, out_row, bias in zip(x, self.in_weight, self.out_weight, self.out_bias, strict=True):
            torch.bernoulli(torch.sigmoid(torch.addmv(bias, activation(state), out_row)), out=column)
            state.addr_(column, in_row)
        return x.T


class PlainMADE(ReferenceMADE):
    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: images (B, *event_shape) of any dtype -> (B,) in nats."""
        return super().log_prob(x.flatten(1).to(self.out_bias.dtype), context)

    @torch.no_grad()
    def draw(self, n: int) -> Tensor:
        """n rows, (n, D), by one network pass for every variable, with weights masked beforehand."""
        activation = MLP_ACTIVATIONS[self.activation]
        layers: Any = self.layers
        weights = [layer.weight * mask.to(layer.weight) for layer, mask in zip(layers, self.masks, strict=True)]
        x = self.out_bias.new_zeros(n, self.variables)
        for i in range(self.variables):
            hidden = x
            for layer, weight in zip(layers[:-1], weights[:-1], strict=True):
                hidden = activation(F.linear(hidden, weight, layer.bias))
            x[:, i] = torch.bernoulli(torch.sigmoid(torch.addmv(self.out_bias[i], hidden, weights[-1][i])))
        return x


def plain_model(model: NADE | MADE) -> PlainNADE | PlainMADE:
    """The same model in plain PyTorch, with a copy of its parameters. Raster order only."""
    if isinstance(model, NADE):
        plain: PlainNADE | PlainMADE = PlainNADE(model.variables, model.hidden_features, activation=model.activation)
    else:
        plain = PlainMADE(model.variables, model.degrees, activation=model.activation)
    plain.load_state_dict(model.state_dict())
    return plain.to(model.device)


@dataclass(frozen=True)
class TrainingComparison:
    """Medians in seconds over interleaved steps, and the largest relative difference of the losses."""

    fast: float
    plain: float
    steps: int
    loss_difference: float
    losses_fast: list[float]
    losses_plain: list[float]


@dataclass(frozen=True)
class SamplingComparison:
    """Medians in seconds for drawing `count` images."""

    fast: float
    plain: float
    count: int


def _timed_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> tuple[float, float]:
    """Loss and seconds; reading the loss waits for the device."""
    start = time.perf_counter()
    loss = train_step(model, optimizer, batch).item()
    return loss, time.perf_counter() - start


def compare_training(
    model: NADE | MADE, images: Tensor, settings: Settings, steps: int = 20, *, progress: bool = True
) -> TrainingComparison:
    """Takes the same steps from the same parameters with both models, in turns. Leaves `model` unchanged."""
    model, plain = copy.deepcopy(model), plain_model(model)
    entrants = {"fast": (model, make_optimizer(model, settings)), "plain": (plain, make_optimizer(plain, settings))}
    losses: dict[str, list[float]] = {name: [] for name in entrants}
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    generator = torch.Generator().manual_seed(settings.seed)
    for step in progress_bar(range(steps), desc="beside plain PyTorch", unit="step", show=progress):
        index = torch.randint(len(images), (settings.batch_size,), generator=generator).to(images.device)
        for name in sorted(entrants, reverse=step % 2 == 1):
            loss, elapsed = _timed_step(*entrants[name], images[index])
            losses[name].append(loss)
            seconds[name].append(elapsed)
    difference = max(abs(a - b) / abs(b) for a, b in zip(losses["fast"], losses["plain"], strict=True))
    # The first steps warm up the allocator and the caches of both models.
    warm = min(3, steps - 1)
    medians = {name: statistics.median(values[warm:]) for name, values in seconds.items()}
    return TrainingComparison(medians["fast"], medians["plain"], steps, difference, losses["fast"], losses["plain"])


@torch.no_grad()
def compare_sampling(model: NADE | MADE, count: int) -> SamplingComparison:
    """Draws `count` images with both models, in turns, from the same parameters."""
    plain = plain_model(model)
    timings = interleave(
        {"fast": lambda: model.sample(count), "plain": lambda: plain.draw(count)},
        seconds=2.0,
        min_rounds=3,
        device=model.device,
    )
    return SamplingComparison(timings["fast"].median, timings["plain"].median, count)
