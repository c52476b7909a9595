"""The same model in plain PyTorch and in ar_fast, step by step in one run: equal losses, different times."""

import copy
import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._progress import progress_bar
from .._timing import interleave
from ..models import MADE, NADE
from ..training import Settings, make_optimizer, train_step
from .plain import plain_twin


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
    """Medians in seconds of drawing `count` images."""

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
    """Takes the same steps from the same parameters with both, in turns. Leaves `model` as it was."""
    model, plain = copy.deepcopy(model), plain_twin(model)
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
    # The first steps warm the allocator and the caches of both.
    warm = min(3, steps - 1)
    medians = {name: statistics.median(values[warm:]) for name, values in seconds.items()}
    return TrainingComparison(medians["fast"], medians["plain"], steps, difference, losses["fast"], losses["plain"])


@torch.no_grad()
def compare_sampling(model: NADE | MADE, count: int) -> SamplingComparison:
    """Draws `count` images with both, in turns, from the same parameters."""
    plain = plain_twin(model)
    timings = interleave(
        {"fast": lambda: model.sample(count), "plain": lambda: plain.sample(count)},
        seconds=2.0,
        min_rounds=3,
        device=model.device,
    )
    return SamplingComparison(timings["fast"].median, timings["plain"].median, count)
