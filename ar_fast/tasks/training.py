"""Training by maximum likelihood: the loop behind the demo, ``ar_fast.compare``, the command line and bench.reproduce.

Shuffled batches (or the next piece of a text), small shifts, AdamW, early stopping on validation; a checkpoint from
which it goes on bit for bit. A model is a torch.nn.Module, so any other loop can train it too.
"""

from __future__ import annotations

import contextlib
import copy
import math
import operator
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .._progress import progress_bar
from ..nn import NegativeLogLikelihood
from . import distributed
from .checkpoints import Checkpoint

__all__ = [
    "Checkpoint",
    "Settings",
    "Split",
    "Text",
    "Training",
    "folded",
    "log_likelihoods",
    "make_optimizer",
    "shift",
    "train",
    "train_step",
]


@dataclass(frozen=True)
class Settings:
    """How to train.

    learning_rate and weight_decay are AdamW's. The rate rises over the first ``warmup`` steps; a cosine lowers it to
    ``final_rate`` times itself. Without ``decay_biases`` the weight decay is on weights only. shift is the largest
    random shift of an image in pixels, 0 for other events. patience is how many epochs may pass without a better
    validation. average, if not 0, is the decay per step of a moving average of the parameters, which is then the model
    that is judged and kept. clip is the largest norm of the gradient; None does not limit it.
    """

    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-2
    weight_decay: float = 1e-2
    shift: int = 0
    patience: int = 10
    seed: int = 0
    warmup: int = 0
    final_rate: float = 0.05
    decay_biases: bool = True
    average: float = 0.0
    clip: float | None = None

    def __post_init__(self) -> None:
        # numpy's integers are not accepted as seeds and not written as JSON.
        for name in ("epochs", "batch_size", "shift", "patience", "seed", "warmup"):
            object.__setattr__(self, name, operator.index(getattr(self, name)))


@dataclass(frozen=True)
class Split:
    """Events in three parts, (N, *event_shape) each, as the models' log_prob takes them."""

    train: Tensor
    validation: Tensor
    test: Tensor

    def batches(self, settings: Settings) -> _Batches | _Pieces:
        """What the steps of training see."""
        return _Batches(self.train, settings)

    def judge(self, model: Any, events: Tensor) -> Tensor:
        """Nats whose mean tells how good the model is on events, in float64."""
        return log_likelihoods(model, events)


@dataclass(frozen=True)
class Text(Split):
    """A text in three parts, tokens (T) each, for a CharRNN.

    A step reads the next ``chunk`` tokens of ``settings.batch_size`` parts of the training text, which lie side by
    side, and goes on from their states; gradients end where a step begins (truncated backpropagation through time).
    """

    chunk: int = 64

    @classmethod
    def split(cls, tokens: Tensor, chunk: int = 64) -> Text:
        """A text (T) in its order: the last tenth is the test part, 3% before it choose the epoch that is kept."""
        test, validation = len(tokens) // 10, len(tokens) * 3 // 100
        train, chosen_by, judged = tokens.split([len(tokens) - validation - test, validation, test])
        return cls(train, chosen_by, judged, chunk)

    def batches(self, settings: Settings) -> _Pieces:
        return _Pieces(folded(self.train, settings.batch_size), self.chunk)

    def judge(self, model: Any, events: Tensor) -> Tensor:
        """Mean nats of a token, (1); the text is read in up to 16 parts side by side."""
        rows = folded(events, min(16, len(events)))
        return torch.tensor([-math.log(model.perplexity(rows))], dtype=torch.float64)


def folded(tokens: Tensor, rows: int) -> Tensor:
    """(T) -> (rows, T / rows): so many parts of a text, side by side. The rest is left out."""
    if len(tokens) < rows:
        raise ValueError(f"text: it must have a token for each of {rows} parts at least, got {len(tokens)}")
    return tokens[: len(tokens) // rows * rows].reshape(rows, -1)


@dataclass
class Training:
    """The result of a training: one entry per epoch in nats per event (or token), and the epoch that was kept.

    An entry has epoch, train (the mean over its steps), validation, and the seconds of training up to its end.
    """

    history: list[dict] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    stopped_early: bool = False


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW; the demo gives the plain-PyTorch model the same optimizer."""
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if not settings.decay_biases:
        named = list(model.named_parameters())
        groups = [{"params": [parameter for name, parameter in named if not name.endswith("bias")]}]
        groups += [{"params": [parameter for name, parameter in named if name.endswith("bias")], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)


def learning_rate(settings: Settings, step: int, steps: int) -> float:
    """Of a step (the first is 0) of so many steps."""
    rise = min(1.0, (step + 1) / max(settings.warmup, 1))
    cosine = (1 + math.cos(math.pi * step / steps)) / 2
    return settings.learning_rate * rise * (settings.final_rate + (1 - settings.final_rate) * cosine)


def _descend(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip: float | None = None) -> None:
    optimizer.zero_grad()
    loss.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


@contextlib.contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Within an outer ``torch.autocast`` its copies of weights in 16 bits would be kept: after a step of the optimiser
    they are those from before it, and after a validation without gradients no gradient reaches the weights."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)


@_no_autocast_cache()
def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    """One step of maximum likelihood, or on the model's ``loss`` if it has one (as DeepNADE does).

    Returns:
        The mean loss, in nats.
    """
    loss = NegativeLogLikelihood(model)(x)
    _descend(model, optimizer, loss)
    return loss.detach()


@torch.no_grad()
def log_likelihoods(model: Any, events: Tensor, batch_size: int = 500) -> Tensor:
    """log p(x) in nats of every event, (N,) in float64; where there are several processes, each computes its share.

    Batches have at most batch_size events.
    """
    own = events[distributed.share(len(events))]
    found = [model.log_prob(batch).double() for batch in own.split(batch_size)]
    return distributed.joined(torch.cat(found), len(events))


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


class _Batches:
    """Shuffled batches of events."""

    def __init__(self, events: Tensor, settings: Settings) -> None:
        self.events, self.settings = events, settings
        self.steps = -(-len(events) // settings.batch_size)

    def begin(self, generator: torch.Generator) -> None:
        """Starts an epoch."""
        order = torch.randperm(len(self.events), generator=generator).to(self.events.device)
        self.chosen = order.split(self.settings.batch_size)

    def loss(self, objective: nn.Module, position: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """The loss of a step of the epoch, which is the mean over the processes, and how many events that is of."""
        index = self.chosen[position]
        batch = shift(self.events[index], self.settings.shift, generator)
        rank, size = distributed.rank_and_size()
        if size > 1:
            # This generator must go on alike in all processes: what each draws for its share comes from another one.
            other = torch.Generator()
            other.set_state(generator.get_state())
            seed = int(torch.randint(2**62, (), generator=other)) + size * position + rank
            batch, generator = batch[distributed.share(len(index))], torch.Generator().manual_seed(seed)
        draws = hasattr(_objective_of(objective).model, "loss")
        loss = objective(batch, **({"generator": generator} if draws else {}))
        return (loss if size == 1 else loss * (size / len(index))), len(index)

    def carried(self) -> dict[str, Tensor]:
        """What the next step takes over from the last one."""
        return {}

    def carry(self, model: nn.Module, carried: dict[str, Tensor]) -> None:
        """Takes what ``carried`` returned."""


class _Pieces:
    """The pieces of a text, in order; the states go on from one to the next. Each process has some of the rows."""

    def __init__(self, streams: Tensor, chunk: int) -> None:
        self.rows, self.streams = len(streams), streams[distributed.share(len(streams))]
        self.chunk = min(chunk, streams.shape[1])
        self.steps, self.state = streams.shape[1] // self.chunk, None

    def begin(self, generator: torch.Generator) -> None:
        self.state = None

    def loss(self, objective: nn.Module, position: int, generator: torch.Generator) -> tuple[Tensor, int]:
        piece = self.streams[:, position * self.chunk : (position + 1) * self.chunk]
        loss, state = objective(piece, state=self.state, return_state=True)
        self.state = state.detach()
        _, size = distributed.rank_and_size()
        return (loss if size == 1 else loss * (size / self.rows)) / self.chunk, self.rows * self.chunk

    # Rows are the first dimension of (B) tensors, and the second of a layer's states (L, B, H).

    def carried(self) -> dict[str, Tensor]:
        values: dict[str, Any] = {} if self.state is None else vars(self.state)
        own = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        return {name: distributed.joined(value, self.rows, int(value.dim() > 1)) for name, value in own.items()}

    def carry(self, model: Any, carried: dict[str, Tensor]) -> None:
        part, own = distributed.share(self.rows), {}
        for name, value in carried.items():
            own[name] = (value[:, part] if value.dim() > 1 else value[part]).to(self.streams.device)
        self.state = replace(model.begin(len(self.streams)), **own)


def _objective_of(module: Any) -> NegativeLogLikelihood:
    """What DistributedDataParallel wraps, or the module itself."""
    return module.module if isinstance(module, DistributedDataParallel) else module


class _Loop:
    """A training between two steps: all that decides how it goes on."""

    def __init__(self, model: nn.Module, data: Split, settings: Settings) -> None:
        self.model, self.data, self.settings = model, data, settings
        self.batches, self.optimizer = data.batches(settings), make_optimizer(model, settings)
        several = distributed.rank_and_size()[1] > 1
        # Sums, where the processes' shares may differ by an event.
        self.objective: nn.Module = NegativeLogLikelihood(model, "sum" if several else "mean")
        if several:
            self.objective = DistributedDataParallel(self.objective)
        self.average = copy.deepcopy(model) if settings.average else None
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.result, self.best, self.kept = Training(), -math.inf, copy.deepcopy(model.state_dict())
        self.epoch, self.position, self.total, self.count = 1, 0, 0.0, 0
        self._epoch_began = self.generator.get_state()

    @property
    def done(self) -> bool:
        return self.epoch > self.settings.epochs or self.result.stopped_early

    @property
    def steps_done(self) -> int:
        return (self.epoch - 1) * self.batches.steps + self.position

    @property
    def judged(self) -> nn.Module:
        return self.model if self.average is None else self.average

    def step(self) -> None:
        if self.position == 0:
            self._epoch_began = self.generator.get_state()
            self.batches.begin(self.generator)
        rate = learning_rate(self.settings, self.steps_done, self.settings.epochs * self.batches.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        model: Any = self.model
        if getattr(model, "n_masks", 1) > 1:
            model.next_mask()
        loss, count = self.batches.loss(self.objective, self.position, self.generator)
        _descend(self.model, self.optimizer, loss, self.settings.clip)
        mean = distributed.total(loss.item(), loss.device) / distributed.rank_and_size()[1]
        self.total, self.count, self.position = self.total + mean * count, self.count + count, self.position + 1
        if self.average is not None:
            self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
        """One step of the moving average: quicker at first, so that it forgets the initial parameters."""
        weight = max(1 - self.settings.average, 9 / (10 + self.steps_done))
        for mean, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(parameter, weight)

    def finish_epoch(self, judge: Callable[[nn.Module, Tensor], Tensor], seconds: float) -> None:
        training = self.judged.training
        self.judged.eval()
        validation = judge(self.judged, self.data.validation).mean().item()
        self.judged.train(training)
        self.result.seconds = seconds
        entry = {"epoch": self.epoch, "train": -self.total / self.count, "validation": validation, "seconds": seconds}
        self.result.history.append(entry)
        if validation > self.best:
            self.best, self.result.best_epoch = validation, self.epoch
            self.kept = copy.deepcopy(self.judged.state_dict())
        self.result.stopped_early = (
            self.epoch - self.result.best_epoch >= self.settings.patience and self.epoch < self.settings.epochs
        )
        self.epoch, self.position, self.total, self.count = self.epoch + 1, 0, 0.0, 0

    # The state in a file. Dropout draws from torch's own generators, everything else from this loop's.

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"kept.{name}": tensor for name, tensor in self.kept.items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for index, own in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in own.items()}
        tensors |= {f"carried.{name}": tensor for name, tensor in self.batches.carried().items()}
        tensors["generator"], tensors["epoch_began"] = self.generator.get_state(), self._epoch_began
        tensors["default_generator"] = torch.get_rng_state()
        if (device := self._cuda()) is not None:
            tensors["cuda_generator"] = torch.cuda.get_rng_state(device)
        values = {name: getattr(self, name) for name in ("epoch", "position", "total", "count")}
        values["best"] = None if self.best == -math.inf else self.best
        return tensors, {**values, "result": vars(self.result), "settings": vars(self.settings)}

    def _cuda(self) -> torch.device | None:
        device = next(self.model.parameters()).device
        return device if device.type == "cuda" else None

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        if values["settings"] != vars(self.settings):
            raise ValueError(f"checkpoint: settings must be {values['settings']}, got {vars(self.settings)}")
        by_part: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            by_part.setdefault(part, {})[rest] = tensor
        try:
            self.model.load_state_dict(by_part["model"])
            if self.average is not None:
                self.average.load_state_dict(by_part["average"])
            device = next(self.model.parameters()).device
            self.kept = {name: tensor.to(device) for name, tensor in by_part["kept"].items()}
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"checkpoint: it must be of a model like this one, got: {reason}") from None
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in by_part.get("optimizer", {}).items():
            index, _, kind = name.partition(".")
            moments.setdefault(int(index), {})[kind] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for name in ("epoch", "position", "total", "count"):
            setattr(self, name, values[name])
        self.best = -math.inf if values["best"] is None else values["best"]
        self.result = Training(**values["result"])
        self._epoch_began = tensors["epoch_began"]
        if self.position:
            self.generator.set_state(self._epoch_began)
            self.batches.begin(self.generator)
            self.batches.carry(self.model, by_part.get("carried", {}))
        self.generator.set_state(tensors["generator"])
        torch.set_rng_state(tensors["default_generator"])
        if (device := self._cuda()) is not None and "cuda_generator" in tensors:
            torch.cuda.set_rng_state(tensors["cuda_generator"], device)


def _offer(checkpoint: Checkpoint, loop: _Loop, device: torch.device) -> None:
    """Writes the state if it is time; with several processes all give their part of it, and the first one writes."""
    due, stop = distributed.any_rank([checkpoint.due or loop.done, checkpoint.stop], device)
    if due:
        state = loop.state()
        if distributed.rank_and_size()[0] == 0:
            checkpoint.write(*state)
        else:
            checkpoint.skip()
    if stop:
        distributed.wait()
        raise KeyboardInterrupt


@_no_autocast_cache()
def train(
    model: nn.Module,
    data: Split,
    settings: Settings,
    *,
    progress: bool = True,
    judge: Callable[[nn.Module, Tensor], Tensor] | None = None,
    on_epoch: Callable[[Training, nn.Module], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Training:
    """Trains in place and leaves the parameters of the epoch with the best validation log-likelihood.

    A model with several sets of masks, as a MADE may have, takes the next set in every step. The call may be made under
    ``torch.autocast``.

    Where torch.distributed has a process group (torchrun), every process calls this with the same arguments: each
    computes its share of every batch, and all end with the same parameters, which are those of one process but for
    rounding. A model whose ``loss`` is random (a DeepNADE) and dropout draw other numbers there. The process of rank 0
    writes the checkpoint.

    Args:
        model: the model.
        data: a :class:`Split`, or a :class:`Text` for a CharRNN; on the model's device.
        settings: how to train.
        progress: show a progress bar, on a terminal or in a notebook.
        judge: (model, events) -> nats whose mean tells how good the model is; None is ``data.judge``.
        on_epoch: called after every epoch with the training so far, whose last entry it may add to, and with the model
            that is judged.
        checkpoint: where the state is kept. If its file exists, the training goes on from there: the parameters and
            every figure but the seconds are the same, bit for bit, as if it had never stopped.

    Raises:
        ValueError: if the checkpoint is of another model or of other settings.
    """
    progress = progress and distributed.rank_and_size()[0] == 0
    loop = _Loop(model, data, settings)
    stored = None if checkpoint is None else checkpoint.load()
    if stored is not None:
        loop.restore(*stored)
    start, steps = time.perf_counter() - loop.result.seconds, loop.batches.steps
    total = settings.epochs * steps
    with progress_bar(
        total=total, initial=loop.steps_done, desc="training", unit="step", show=progress, dynamic_ncols=True
    ) as bar:
        while not loop.done:
            loop.step()
            bar.update()
            if loop.position == steps:
                loop.finish_epoch(judge or data.judge, time.perf_counter() - start)
                if on_epoch is not None:
                    on_epoch(loop.result, loop.judged)
                validation = loop.result.history[-1]["validation"]
                bar.set_postfix_str(f"epoch {loop.epoch - 1}, validation {validation:.2f} nats, best {loop.best:.2f}")
            loop.result.seconds = time.perf_counter() - start
            if checkpoint is not None:
                _offer(checkpoint, loop, data.train.device)
    model.load_state_dict(loop.kept)
    return loop.result
