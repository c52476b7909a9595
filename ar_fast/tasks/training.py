"""Training by maximum likelihood: shuffled batches, small shifts, AdamW, early stopping on validation.

It is enough for the demo and for ``ar_fast.compare``. A model is a torch.nn.Module, so any other loop can train it too.
"""

from __future__ import annotations

import copy
import operator
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .._progress import progress_bar

__all__ = ["Settings", "Split", "Training", "log_likelihoods", "make_optimizer", "shift", "train", "train_step"]


@dataclass(frozen=True)
class Split:
    """Events in three parts, (N, *event_shape) each, as the models' log_prob takes them."""

    train: Tensor
    validation: Tensor
    test: Tensor


@dataclass(frozen=True)
class Settings:
    """How to train.

    learning_rate (at the start; a cosine lowers it) and weight_decay are AdamW's. shift is the largest random shift of
    an image in pixels, 0 for other events. patience is how many epochs may pass without a better validation.
    """

    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-2
    weight_decay: float = 1e-2
    shift: int = 0
    patience: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        # numpy's integers are not accepted as seeds and not written as JSON.
        for name in ("epochs", "batch_size", "shift", "patience", "seed"):
            object.__setattr__(self, name, operator.index(getattr(self, name)))


@dataclass
class Training:
    """The result of a training: one entry per epoch in nats per image, and the epoch that was kept."""

    history: list[dict] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    stopped_early: bool = False


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW on weights and biases alike; the demo gives the plain-PyTorch model the same optimizer."""
    return torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    """One step of maximum likelihood, or on the model's ``loss`` if it has one (as DeepNADE does).

    Returns:
        The mean loss, in nats.
    """
    optimizer.zero_grad()
    loss = (model.loss(x) if hasattr(model, "loss") else -model.log_prob(x)).mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def log_likelihoods(model: nn.Module, events: Tensor, batch_size: int = 500) -> Tensor:
    """log p(x) in nats of every event, (N,) in float64."""
    return torch.cat([model.log_prob(batch).double() for batch in events.split(batch_size)])


def shift(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Shifts every image in both directions by its own random amounts of up to `pixels`, and fills in zeros.

    Args:
        images: (N, height, width) or (N, channels, height, width); if pixels is 0, any tensor.

    Raises:
        ValueError: if pixels is not 0 and images have another shape.
    """
    if pixels == 0:
        return images
    if images.dim() not in (3, 4):
        raise ValueError(
            "shift: images must have shape (N, height, width) or (N, channels, height, width) where shift is not 0, "
            f"got {tuple(images.shape)} and shift = {pixels}"
        )
    count, height, width = images.shape[0], *images.shape[-2:]
    padded = torch.nn.functional.pad(images, (pixels,) * 4).reshape(count, -1, height + 2 * pixels, width + 2 * pixels)
    moves = torch.randint(0, 2 * pixels + 1, (2, count, 1, 1), generator=generator).to(images.device)
    rows = moves[0] + torch.arange(height, device=images.device)[:, None]
    columns = moves[1] + torch.arange(width, device=images.device)
    moved = padded[torch.arange(count, device=images.device)[:, None, None], :, rows, columns]
    return moved.movedim(-1, 1).reshape(images.shape)


def train(model: nn.Module, data: Split, settings: Settings, *, progress: bool = True) -> Training:
    """Trains in place and leaves the parameters of the epoch with the best validation log-likelihood."""
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = make_optimizer(model, settings)
    steps = -(-len(data.train) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, settings.epochs * steps, settings.learning_rate / 20
    )
    result, best, kept = Training(), -float("inf"), copy.deepcopy(model.state_dict())
    start = time.perf_counter()
    with progress_bar(total=settings.epochs * steps, desc="training", unit="step", show=progress) as bar:
        for epoch in range(1, settings.epochs + 1):
            total, chosen = 0.0, torch.randperm(len(data.train), generator=generator).to(data.train.device)
            for index in chosen.split(settings.batch_size):
                batch = shift(data.train[index], settings.shift, generator)
                total += train_step(model, optimizer, batch).item() * len(index)
                schedule.step()
                bar.update()
            validation = log_likelihoods(model, data.validation).mean().item()
            result.history.append({"epoch": epoch, "train": -total / len(data.train), "validation": validation})
            if validation > best:
                best, result.best_epoch = validation, epoch
                kept = copy.deepcopy(model.state_dict())
            bar.set_postfix_str(f"epoch {epoch}, validation {validation:.2f} nats, best {best:.2f}")
            if epoch - result.best_epoch >= settings.patience:
                result.stopped_early = True
                break
    model.load_state_dict(kept)
    result.seconds = time.perf_counter() - start
    return result
