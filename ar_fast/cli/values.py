"""What a model sees of the data: how events become tensors and samples become data again, and the head that fits."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import heads
from ..models import Vocabulary
from .sources import Source

KINDS = ("auto", "binary", "levels", "categories", "reals")
# A column of whole numbers with so many different values at most holds categories.
_MOST_CATEGORIES = 10


class Values(abc.ABC):
    """How the events of a source become tensors, (N, *event_shape), and back."""

    kind: str
    event_shape: tuple[int, ...]
    #: Of the variables, where a model does not standardise them itself; flat.
    mean: list[float] | None = None
    std: list[float] | None = None

    def standardize(self, x: Tensor) -> None:
        """Takes mean and standard deviation of x, (N, *event_shape): from now on ``encode`` divides them out."""
        rows = x.double().flatten(1)
        std = rows.std(0, correction=0)
        if bool((std == 0).any()):
            raise ValueError(f"data: real variables must vary, got a constant at index {int((std == 0).nonzero()[0])}")
        self.mean, self.std = rows.mean(0).tolist(), std.tolist()

    @property
    def log_volume(self) -> float:
        """The log-density of the data minus that of the tensors."""
        return 0.0 if self.std is None else -float(np.log(self.std).sum())

    def _units(self) -> tuple[Tensor, Tensor] | tuple[float, float]:
        if self.mean is None or self.std is None:
            return 0.0, 1.0
        mean, std = (torch.tensor(own, dtype=torch.float64).reshape(self.event_shape) for own in (self.mean, self.std))
        return mean, std

    @abc.abstractmethod
    def encode(self, events: Any) -> Tensor:
        """In float64 where variables are real. ValueError for events of another kind."""

    @abc.abstractmethod
    def decode(self, x: Tensor) -> Any:
        """The events that encode would turn into x."""

    @abc.abstractmethod
    def head(self, components: int) -> heads.Head:
        """The head that fits; mixtures have so many components."""

    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON holds them, and the kind."""

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """For people."""


class Numbers(Values):
    """Arrays and images.

    Args:
        event_shape: of one event.
        values: "binary", "levels", "categories" or "reals".
        threshold: what is above becomes 1, if values is binary and the data are not.
        levels: how many levels or categories.
        mean, std: see :class:`Values`.
    """

    kind = "array"

    def __init__(
        self,
        event_shape: Sequence[int],
        values: str,
        threshold: float | None = None,
        levels: int = 0,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        self.event_shape, self.values = tuple(event_shape), values
        self.threshold, self.levels, self.mean, self.std = threshold, levels, mean, std

    @classmethod
    def of(cls, source: Source, shape: Sequence[int] | None, values: str) -> Numbers:
        """Those that fit a source; what values is auto depends on what the source holds."""
        arrays = list(source.parts.values())
        event_shape = tuple(shape or arrays[0].shape[1:])
        if values == "auto":
            binary = all(np.isin(array, (0, 1)).all() for array in arrays)
            whole = all(array.dtype.kind in "bui" or np.equal(array, np.floor(array)).all() for array in arrays)
            levels = whole and min(array.min() for array in arrays) >= 0
            values = "binary" if binary else "levels" if levels else "reals"
        high = max(float(array.max()) for array in arrays)
        if values == "binary":
            binary = all(np.isin(array, (0, 1)).all() for array in arrays)
            return cls(event_shape, values, None if binary else high / 2)
        if values in ("levels", "categories"):
            grey = values == "levels" and all(array.dtype == np.uint8 for array in arrays)
            return cls(event_shape, values, levels=256 if grey else max(2, int(high) + 1))
        return cls(event_shape, values)

    def encode(self, events: np.ndarray, *, first: int = 0) -> Tensor:
        """``first`` is the number of the first event, for errors."""
        if events.ndim < 2 or math.prod(events.shape[1:]) != math.prod(self.event_shape):
            raise ValueError(
                f"data: events must have shape {tuple(self.event_shape)}, as those of the model, got {events.shape[1:]}"
            )
        if events.ndim > 2 and len(self.event_shape) > 1 and events.shape[1:] != self.event_shape:
            raise ValueError(
                f"data: events must have shape {tuple(self.event_shape)}, as those of the model, got {events.shape[1:]}"
            )
        events = events.reshape(-1, *self.event_shape)
        if events.dtype.kind == "f" and not np.isfinite(events).all():
            place = np.argwhere(~np.isfinite(events))[0].tolist()
            raise ValueError(f"data: numbers must be finite, got {events[tuple(place)]} in event {first + place[0]}")
        if self.values == "reals":
            mean, std = self._units()
            return (torch.from_numpy(events.astype(np.float64)) - mean) / std
        if self.threshold is not None:
            return torch.from_numpy((events > self.threshold).astype(np.uint8))
        bound = 2 if self.values == "binary" else self.levels
        wrong = ~((events >= 0) & (events < bound) & (events == np.floor(events)))
        if wrong.any():
            place = tuple(np.argwhere(wrong)[0].tolist())
            raise ValueError(
                f"data: values must be whole numbers in 0 ... {bound - 1}, as those of the model, got {events[place]} "
                f"in event {first + place[0]}"
            )
        return torch.from_numpy(events.astype(np.uint8 if bound <= 256 else np.int64))

    def decode(self, x: Tensor) -> np.ndarray:
        array = x.detach().cpu()
        if self.values == "reals":
            mean, std = self._units()
            array = array.double() * std + mean
            return array.to(torch.float32).numpy()
        bound = 2 if self.values == "binary" else self.levels
        return array.to(torch.uint8 if bound <= 256 else torch.int64).numpy()

    def head(self, components: int) -> heads.Head:
        if self.values == "binary":
            return heads.Bernoulli()
        if self.values == "levels":
            return heads.LogisticMixture(components, self.levels)
        if self.values == "categories":
            return heads.Categorical(self.levels)
        return heads.GaussianMixture(components)

    def config(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("values", "threshold", "levels", "mean", "std")}
        return {"kind": self.kind, "event_shape": list(self.event_shape), **own}

    @property
    def description(self) -> str:
        shape = " x ".join(map(str, self.event_shape))
        how = {
            "binary": "0 and 1" if self.threshold is None else f"0 and 1 (above {self.threshold:g})",
            "levels": f"levels 0 ... {self.levels - 1}",
            "categories": f"categories 0 ... {self.levels - 1}",
            "reals": "reals",
        }
        return f"{shape}, {how[self.values]}"


class Table(Values):
    """A table's columns: bits, categories and reals, column by column.

    Args:
        columns: for each column its name, and its categories in order, or None if it is real.
        mean, std: see :class:`Values`.
    """

    kind = "table"

    def __init__(
        self, columns: Sequence[dict[str, Any]], mean: list[float] | None = None, std: list[float] | None = None
    ) -> None:
        self.columns, self.mean, self.std = list(columns), mean, std
        self.event_shape = (len(self.columns),)

    @classmethod
    def of(
        cls, source: Source, categories: Sequence[str] = (), reals: Sequence[str] = (), dropped: Sequence[str] = ()
    ) -> Table:
        """Text, booleans and whole numbers of at most 10 different values are categories, other numbers are reals."""
        import pandas

        frame = pandas.concat(list(source.parts.values()))
        for name in (*categories, *reals, *dropped):
            if name not in frame.columns:
                raise ValueError(f"data: {source.name} must have the column {name!r}, got {list(frame.columns)}")
        columns = []
        for name in frame.columns:
            if name in dropped:
                continue
            cells = frame[name]
            _check_complete(name, cells)
            numbers = pandas.api.types.is_numeric_dtype(cells) and not pandas.api.types.is_bool_dtype(cells)
            different = sorted(cells.unique().tolist(), key=lambda value: (str(type(value)), value))
            whole = numbers and all(float(value).is_integer() for value in different[: _MOST_CATEGORIES + 1])
            few = numbers and whole and len(different) <= _MOST_CATEGORIES
            if name in reals or (numbers and not few and name not in categories):
                if not numbers:
                    raise ValueError(f"data: the column {name!r} must hold numbers to be real, got {different[0]!r}")
                columns.append({"name": name, "categories": None})
                continue
            if len(different) < 2 or len(different) > max(100, len(cells) // 2):
                raise ValueError(
                    f"data: a category must have several values, each in several rows, got {len(different)} in the "
                    f"{len(cells)} rows of column {name!r}: leave it out with --drop {name}"
                )
            columns.append({"name": name, "categories": different})
        if not columns:
            raise ValueError(f"data: {source.name} must have a column that is not dropped, got none")
        return cls(columns)

    def encode(self, events: Any, *, complete: bool = True) -> Tensor:
        names = [column["name"] for column in self.columns]
        missing = [name for name in names if name not in events.columns]
        if missing:
            raise ValueError(f"data: the table must have the model's columns {names}, got none named {missing[0]!r}")
        encoded = []
        for column in self.columns:
            cells = events[column["name"]]
            if complete:
                _check_complete(column["name"], cells)
            encoded.append(_real_cells(cells, column) if column["categories"] is None else _categories(cells, column))
        mean, std = self._units()
        return (torch.from_numpy(np.stack(encoded, 1)) - mean) / std

    def decode(self, x: Tensor) -> Any:
        import pandas

        mean, std = self._units()
        rows, columns = (x.detach().cpu() * std + mean).numpy(), {}
        for index, column in enumerate(self.columns):
            own, names = rows[:, index], column["categories"]
            columns[column["name"]] = own if names is None else [names[int(number)] for number in own]
        return pandas.DataFrame(columns)

    def head(self, components: int) -> heads.Head:
        counts = [None if column["categories"] is None else len(column["categories"]) for column in self.columns]
        if all(count is None for count in counts):
            return heads.GaussianMixture(components)
        if all(count == 2 for count in counts):
            return heads.Bernoulli()
        made = [
            heads.GaussianMixture(components) if count is None
            else heads.Bernoulli() if count == 2
            else heads.Categorical(count)
            for count in counts
        ]  # fmt: skip
        return heads.PerVariable(made)

    @property
    def reals(self) -> list[int]:
        """The indices of the real columns."""
        return [index for index, column in enumerate(self.columns) if column["categories"] is None]

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "columns": self.columns, "mean": self.mean, "std": self.std}

    @property
    def description(self) -> str:
        reals = len(self.reals)
        return f"{len(self.columns)} columns, {reals} of reals and {len(self.columns) - reals} of categories"


def _check_complete(name: str, cells: Any) -> None:
    empty = cells.isna().to_numpy()
    if empty.any():
        raise ValueError(
            f"data: every cell must have a value, got {int(empty.sum())} empty or NaN in column {name!r}, the first in "
            f"row {int(empty.argmax())}"
        )


def _real_cells(cells: Any, column: dict[str, Any]) -> np.ndarray:
    try:
        values = cells.to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise ValueError(f"data: the column {column['name']!r} must hold numbers: {error}") from None
    if np.isinf(values).any():
        raise ValueError(f"data: the column {column['name']!r} must hold finite numbers, got an infinity")
    return values


def _categories(cells: Any, column: dict[str, Any]) -> np.ndarray:
    numbers = {value: number for number, value in enumerate(column["categories"])}
    values = []
    for row, (value, empty) in enumerate(zip(cells.tolist(), cells.isna().tolist(), strict=True)):
        if not empty and value not in numbers:
            raise ValueError(
                f"data: the column {column['name']!r} must hold one of {column['categories'][:10]}, as in training, "
                f"got {value!r} in row {row}"
            )
        values.append(np.nan if empty else numbers[value])
    return np.array(values, dtype=np.float64)


class Characters(Values):
    """Text as tokens (T); an event has no fixed shape."""

    kind, event_shape = "text", ()

    def __init__(self, vocabulary: str | Sequence[str] | Vocabulary) -> None:
        self.vocabulary = vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary(vocabulary)

    @classmethod
    def of(cls, source: Source, vocabulary: str) -> Characters:
        """vocabulary: "bytes", or "characters", those that the text has."""
        return cls("bytes" if vocabulary == "bytes" else sorted(set("".join(source.parts.values()))))

    def encode(self, events: str) -> Tensor:
        return self.vocabulary.encode(events)

    def decode(self, x: Tensor) -> str:
        return self.vocabulary.decode(x)

    def head(self, components: int) -> heads.Head:
        return heads.Categorical(len(self.vocabulary))

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "vocabulary": self.vocabulary.config()}

    @property
    def description(self) -> str:
        return "bytes of UTF-8" if self.vocabulary.is_bytes else f"{len(self.vocabulary)} characters"


def from_config(config: dict[str, Any]) -> Values:
    """The values that ``config()`` described.

    Raises:
        ValueError: if it describes none.
    """
    arguments = dict(config)
    kinds = {made.kind: made for made in (Numbers, Table, Characters)}
    try:
        return kinds[arguments.pop("kind")](**arguments)
    except (KeyError, TypeError) as error:
        raise ValueError(f"run: 'values' in config.json must be those that training wrote, got {error!r}") from None
