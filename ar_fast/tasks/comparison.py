"""Several models, trained on the same data, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..models.base import AutoregressiveModel
from ._table import aligned
from ._timing import interleave
from .training import Settings, Split, log_likelihoods, train

__all__ = ["Comparison", "Entry", "compare"]

SAMPLES = 100


@dataclass(frozen=True)
class Entry:
    """A trained model and its line of the table.

    Attributes:
        parameters: how many numbers the density depends on (``model.count_parameters()``).
        test: mean log-likelihood of the test part, in nats.
        standard_error: standard error of that mean.
        epochs: how many epochs were trained; the one with the best validation is kept.
        seconds_per_epoch: including its validation.
        seconds_per_100_samples: median time of drawing 100 events, over at least five draws.
    """

    name: str
    model: AutoregressiveModel
    parameters: int
    test: float
    standard_error: float
    epochs: int
    seconds_per_epoch: float
    seconds_per_100_samples: float


class Comparison(list[Entry]):
    """The entries in the order of the models; as a string, a table."""

    def __str__(self) -> str:
        header = ("model", "parameters", "test, nats", "seconds per epoch", "seconds per 100 samples")
        lines = [
            (
                entry.name,
                f"{entry.parameters:,}",
                f"{entry.test:.2f} ± {entry.standard_error:.2f}",
                f"{entry.seconds_per_epoch:.3g}",
                f"{entry.seconds_per_100_samples:.2g}",
            )
            for entry in self
        ]
        first, *others = aligned([header, *lines])
        rule = ["-" * len(first[0]), *("-" * (len(cell) - 1) + ":" for cell in first[1:])]
        return "\n".join(f"| {' | '.join(row)} |" for row in (first, rule, *others))


def compare(
    models: Sequence[AutoregressiveModel] | Mapping[str, AutoregressiveModel],
    data: Split,
    settings: Settings | Sequence[Settings] | None = None,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    """Trains each model in place by maximum likelihood, and measures it on the test part.

    Args:
        models: models of one event shape; either a dictionary with a name for each, or a sequence, where the names are
            those of their classes. A model that has a ``loss``, as DeepNADE does, is trained on it.
        data: the events, on the models' device.
        settings: how to train, either one for all or one for each; None is ``Settings()``.
        seed: seed of the samples that are drawn.
        progress: show progress bars.

    Returns:
        One entry for each model; ``print`` the result for a table.

    Raises:
        ValueError: if there are no models, a part of the data is empty, or the number of settings is wrong.

    Example:
        >>> from ar_fast.models import FVSBN, NADE
        >>> from ar_fast.tasks.training import Settings, Split
        >>> data = Split(*torch.randint(0, 2, (300, 8)).split(100))
        >>> table = compare([FVSBN(8), NADE(8, 4)], data, Settings(epochs=1), progress=False)
        >>> [entry.parameters for entry in table]
        [36, 76]
    """
    named = dict(models) if isinstance(models, Mapping) else _by_class(models)
    if not named:
        raise ValueError("compare: models must be one or more, got none")
    for part in ("train", "validation", "test"):
        if len(getattr(data, part)) == 0:
            raise ValueError(f"compare: data must have events in every part, got none in {part}")
    if settings is None or isinstance(settings, Settings):
        each = [settings or Settings()] * len(named)
    else:
        each = list(settings)
    if len(each) != len(named):
        raise ValueError(f"compare: settings must be one or one for each of {len(named)} models, got {len(each)}")
    entries = zip(named.items(), each, strict=True)
    return Comparison(_entry(name, model, data, own, seed, progress) for (name, model), own in entries)


def _by_class(models: Sequence[AutoregressiveModel]) -> dict[str, AutoregressiveModel]:
    names = [type(model).__name__ for model in models]
    numbered = [
        name if names.count(name) == 1 else f"{name} {1 + names[:index].count(name)}"
        for index, name in enumerate(names)
    ]
    return dict(zip(numbered, models, strict=True))


def _entry(name: str, model: AutoregressiveModel, data: Split, settings: Settings, seed: int, progress: bool) -> Entry:
    training = train(model, data, settings, progress=progress)
    test = log_likelihoods(model, data.test)
    epochs = len(training.history)
    drawing = interleave({"draw": lambda: model.sample(SAMPLES, seed=seed)}, seconds=0.2, device=model.device)
    return Entry(
        name=name,
        model=model,
        parameters=model.count_parameters(),
        test=test.mean().item(),
        standard_error=test.std().item() / len(test) ** 0.5 if len(test) > 1 else float("nan"),
        epochs=epochs,
        seconds_per_epoch=training.seconds / epochs,
        seconds_per_100_samples=drawing["draw"].median,
    )
