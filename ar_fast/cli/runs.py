"""Run folders: config.json (model, data, settings), metrics.jsonl, checkpoint.safetensors while training, model/,
held_out.npy (the validation part's nats, by which anomalies are judged) and pictures."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import flows, heads, models
from .._progress import progress_bar
from .._version import __version__
from ..tasks import distributed
from ..tasks.training import Checkpoint, Settings, Split, Text, Training, train
from . import kinds, outputs, sources
from .pictures import save_learning_curve
from .values import Characters, Numbers, Table, Values, from_config

FORMAT, FORMAT_VERSION = "ar_fast.run", 1
# What config.json must have.
_CONFIG = {
    "model": dict, "data": dict, "values": dict, "settings": dict, "device": str, "dtype": str, "seed": int,
    "threads": int,
}  # fmt: skip
# So many lines of a text are read side by side.
_LINES = 64
# So many events are evaluated side by side, and at most so many of their variables.
_ROWS, _ROW_ELEMENTS = 500, 2**20
# A machine cannot start any number of threads, and a process that has too many ends without a word.
MOST_THREADS = 1024
SHIPPED = Path(__file__).resolve().parents[1] / "trained"
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}


@dataclass(frozen=True)
class Run:
    """A trained model and what it was trained on. config is None where there is only the model's own folder."""

    folder: Path
    config: dict[str, Any] | None
    values: Values
    model: Any

    @property
    def seed(self) -> int:
        return 0 if self.config is None else self.config["seed"]

    @functools.cached_property
    def density(self) -> Any:
        """What events are judged by and drawn from: the model, or the mixture of its sets of masks."""
        return mixture(self.model)

    @property
    def data(self) -> str:
        if self.config is None:
            raise ValueError(f"--data: must be given, since {self.folder} does not say what its model was trained on")
        return self.config["data"]["source"]


def mixture(model: Any) -> Any:
    """The mixture of the sets of masks of a MADE that has several; any other model as it is."""
    return model.ensemble() if getattr(model, "n_masks", 1) > 1 else model


def device_of(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: must be cpu, cuda or cuda:0, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device: {name} was asked for, but torch sees no CUDA device")
    return device


def digest(parts: dict[str, Tensor]) -> str:
    """Of the data, so that a training does not go on with others."""
    total = hashlib.sha256()
    for name, part in parts.items():
        total.update(f"{name} {tuple(part.shape)} {part.dtype}".encode())
        total.update(part.contiguous().numpy().data)
    return total.hexdigest()[:16]


def encoded(source: sources.Source, values: Values, seed: int) -> dict[str, Tensor]:
    """train, validation, test, and "all" in the order of the file.

    A source without parts of its own is split: 80% train, 10% validation, 10% test, shuffled by the seed; a text in its
    order.
    """
    if source.kind != values.kind:
        raise ValueError(f"data: must be {values.description}, as of the model, got the {source.kind} {source.name}")
    own = {part: values.encode(events) for part, events in source.parts.items()}
    if "all" not in own:
        return {**own, "all": torch.cat(list(own.values()))}
    events = own["all"]
    tenth = max(1, len(events) // 10)
    if len(events) < 3:
        return {"all": events, **dict.fromkeys(sources.PARTS, events[:0])}
    shuffled = events
    if source.kind != "text":
        shuffled = events[torch.from_numpy(np.random.default_rng(seed).permutation(len(events)))]
    parts = shuffled[: -2 * tenth], shuffled[-2 * tenth : -tenth], shuffled[-tenth:]
    return {**dict(zip(sources.PARTS, parts, strict=True)), "all": events}


def on_model(x: Tensor, model: Any) -> Tensor:
    """Where and in what dtype the model takes them."""
    if not x.is_floating_point():
        return x.to(model.device)
    one = model.members[0] if isinstance(model, models.Ensemble) else model
    return x.to(model.device, getattr(one, "compute_dtype", one.dtype))


@torch.no_grad()
def nats(model: Any, events: Tensor, values: Values, *, per_variable: bool = False, show: bool = True) -> Tensor:
    """log p of every event in the data's units, (N) or (N, D) in float64 on the CPU; show: the progress."""
    own = {"per_variable": True} if per_variable else {}
    found = []
    # Large events are taken a few at a time: a model keeps its hidden units for each of their variables.
    rows = max(1, min(_ROWS, _ROW_ELEMENTS // math.prod(values.event_shape)))
    with progress_bar(total=len(events), desc="evaluating", unit="event", show=show) as bar:
        for batch in events.split(rows):
            found.append(model.log_prob(on_model(batch, model), **own).double().cpu())
            bar.update(len(batch))
    result = torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)
    return result.flatten(1) if per_variable else result + values.log_volume


@torch.no_grad()
def line_nats(model: Any, lines: Sequence[str], values: Characters, *, show: bool = True) -> Tensor:
    """Nats per character of each line of a text, read by itself, (N) in float64 on the CPU; 0 for an empty one."""
    tokens, found = [values.encode(line) for line in lines], []
    with progress_bar(total=len(lines), desc="evaluating", unit="line", show=show) as bar:
        for start in range(0, len(lines), _LINES):
            some = tokens[start : start + _LINES]
            lengths = torch.tensor([len(own) for own in some])
            rows = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
            log_prob = model.log_prob(rows.to(model.device), lengths.to(model.device)).double().cpu()
            characters = torch.tensor([max(1, len(line)) for line in lines[start : start + _LINES]])
            found.append(log_prob / characters)
            bar.update(len(some))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


def open_run(name: str, device: str, dtype: str | None = None) -> Run:
    """A run's folder, a model's folder, or the name of a model that ships with the package.

    Raises:
        ValueError: if it is none of these, or training has not come to its end.
    """
    folder = Path(name)
    if not folder.exists() and (SHIPPED / name).is_dir() and Path(name).name == name:
        folder = SHIPPED / name
    if not folder.is_dir():
        raise ValueError(f"RUN: must be the folder of a run{_shipped_names()}, got {name}, which is no folder")
    config = _read_json(folder / "config.json")
    if config.get("format") == models._files.FORMAT:
        model = _load_model(folder, device, dtype)
        return Run(folder, None, _values_of(model), model)
    _check_config(config, folder)
    if not (folder / "model" / "config.json").is_file():
        raise ValueError(f"RUN: its training has not ended: ar-fast train --resume {folder}")
    values, model = from_config(config["values"]), _load_model(folder / "model", device, dtype)
    text = isinstance(values, Characters)
    fits = text == isinstance(model, models.CharRNN) and (text or tuple(model.event_shape) == tuple(values.event_shape))
    if not fits:
        raise ValueError(
            f"RUN: {folder / 'model'} must be a model of {values.description}, as config.json says, got a "
            f"{type(model).__name__} of other events"
        )
    return Run(folder, config, values, model)


def open_events(name: str, device: str, dtype: str | None, verb: str) -> Run:
    """The same, if its model is one of events; ``verb`` is the command, for the error."""
    opened = open_run(name, device, dtype)
    if isinstance(opened.values, Characters):
        raise ValueError(f"RUN: {verb} is for events, got the model of a text, {name}: ar-fast generate {name}")
    return opened


def _shipped_names() -> str:
    names = sorted(path.name for path in SHIPPED.iterdir() if path.is_dir()) if SHIPPED.is_dir() else []
    return f" or one of {', '.join(names)}" if names else ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"RUN: must be the folder of a run, with a config.json, got {path.parent}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"RUN: {path} must be JSON: {error}") from None
    return value if isinstance(value, dict) else {}


def _check_config(config: dict[str, Any], folder: Path) -> None:
    if config.get("format") != FORMAT:
        raise ValueError(f"RUN: must be the folder of a run, got {folder}, whose config.json is that of something else")
    if config.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"RUN: format_version must be {FORMAT_VERSION}, got {config.get('format_version')!r}")
    path = folder / "config.json"
    for name, kind in _CONFIG.items():
        if name not in config:
            raise ValueError(f"RUN: {path} must have {name}, got none")
        if not isinstance(config[name], kind):
            raise ValueError(f"RUN: {name} must be {kind.__name__} in {path}, got {config[name]!r}")
    rules = {
        "a model's name": config["model"].get("name") in kinds.KINDS,
        "a model's options": isinstance(config["model"].get("options"), dict),
        "the source of the data": isinstance(config["data"].get("source"), str),
        f"a dtype of {', '.join(DTYPES)}": config["dtype"] in DTYPES,
        "settings that train takes": config["settings"].keys() <= {field.name for field in fields(Settings)},
    }
    for rule, holds in rules.items():
        if not holds:
            raise ValueError(f"RUN: {path} must have {rule}, got another")


def _load_model(folder: Path, device: str, dtype: str | None) -> Any:
    where = device_of(device)
    load = flows.load if _read_json(folder / "config.json").get("model") == "MAF" else models.load
    model = load(folder, where).eval()
    return model if dtype is None else model.to(DTYPES[dtype])


def _values_of(model: Any) -> Values:
    """What a model takes, where nothing but the model is known."""
    if isinstance(model, models.CharRNN):
        return Characters(model.vocabulary)
    if isinstance(model, flows.MAF):
        return Numbers(model.event_shape, "reals")
    head = model.head
    kinds: dict[type, str] = {
        heads.Bernoulli: "binary",
        heads.LogisticMixture: "levels",
        heads.GaussianMixture: "reals",
    }
    if type(head) in kinds:
        return Numbers(model.event_shape, kinds[type(head)], levels=head.levels)
    if isinstance(head, heads.Categorical) and isinstance(head.categories, int):
        return Numbers(model.event_shape, "categories", levels=head.categories)
    raise ValueError(f"RUN: must be the folder of a run where variables differ, got a model's own folder with {head!r}")


def scores(model: Any, events: Tensor, values: Values, *, show: bool = True) -> Tensor:
    """What anomalies are judged by: log p of every event, or nats per character of every line of a text."""
    if not isinstance(values, Characters):
        return nats(model, events, values, show=show)
    return line_nats(model, [line for line in values.decode(events).splitlines() if line.strip()], values, show=show)


@dataclass
class Prepared:
    """A training before its first step; nothing is written yet."""

    folder: Path
    config: dict[str, Any]
    values: Values
    model: Any
    data: Split
    settings: Settings


def prepare(folder: Path, config: dict[str, Any], source: sources.Source | None = None) -> Prepared:
    """Reads the data and makes the model that the config describes.

    Raises:
        ValueError: if the data are not those of the config, or do not fit the model.
    """
    torch.set_num_threads(config["threads"])
    device, dtype = device_of(config["device"]), DTYPES[config["dtype"]]
    values = from_config(config["values"])
    data = config["data"]
    parts = encoded(source or sources.read(data["source"]), values, config["seed"])
    found = digest(parts)
    if data.setdefault("digest", found) != found:
        raise ValueError(f"--data: {data['source']} must hold what the run was started with, got other data")
    for part in sources.PARTS:
        if len(parts[part]) == 0:
            raise ValueError(f"data: every part must have events, at least 3 in all, got none in {part}")
    torch.manual_seed(config["seed"])
    name = config["model"]["name"]
    model = kinds.make(name, config["model"]["options"], values, config["seed"], device, dtype)
    own = [on_model(parts[part], model) for part in sources.PARTS]
    settings = Settings(**config["settings"])
    if isinstance(values, Characters):
        train, validation, test = own
        split: Split = Text(train, validation, test, config["chunk"])
        split.batches(settings)
    else:
        split = Split(*own)
        _start(model, split.train, values)
    return Prepared(folder, config, values, model, split, settings)


def _start(model: Any, x: Tensor, values: Values) -> None:
    """Units and output biases from the training part."""
    if getattr(model, "standardization", None) is not None:
        model.standardize(x)
    if not isinstance(model, flows.MAF) and not isinstance(model.head, heads.Categorical):
        mean = x.mean(0, dtype=torch.float64)
        model.initialize_from_mean(mean)


@contextlib.contextmanager
def signals(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and a request to end call ``stop`` instead of breaking off what is under way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_training(prepared: Prepared, seconds: float) -> dict[str, Any] | None:
    """Trains, or goes on, and writes everything into the folder. Returns the figures of the test part.

    Of several processes, that of rank 0 writes; the others return None.

    Args:
        prepared: from ``prepare``.
        seconds: how often the state is written.
    """
    folder, model, values = prepared.folder, prepared.model, prepared.values
    rank, _ = distributed.rank_and_size()
    metrics, checkpoint = folder / "metrics.jsonl", Checkpoint(folder / "checkpoint.safetensors", seconds)

    def write_metrics(so_far: Training, _: Any) -> None:
        if rank == 0:
            outputs.write_lines(metrics, so_far.history)

    def stop() -> None:
        checkpoint.stop = True

    def judge(model: Any, events: Tensor) -> Tensor:
        # Parameters are kept for what they are used in, not for the set of masks that was last in use.
        return prepared.data.judge(mixture(model), events)

    with signals(stop):
        result = train(
            model, prepared.data, prepared.settings, judge=judge, on_epoch=write_metrics, checkpoint=checkpoint
        )
    if result.best_epoch == 0:
        raise ValueError("train: the likelihood became NaN or infinite in the first epochs; lower --learning-rate")
    if rank > 0:
        return None
    model.eval()
    density = mixture(model)
    test = measure(density, prepared.data.test, values)
    last = {"kept_epoch": result.best_epoch, "stopped_early": result.stopped_early, "test": test}
    outputs.write_lines(metrics, [*result.history, last])
    with outputs.whole(folder / "held_out.npy") as beside, open(beside, "wb") as file:
        np.save(file, scores(density, prepared.data.validation, values).numpy())
    write_pictures(folder, density, values, result, prepared.config["seed"])
    # Last: a run whose model is there is complete.
    model.save(folder / "model")
    checkpoint.remove()
    return {**last, "epochs": len(result.history), "seconds": result.seconds}


def write_pictures(folder: Path, model: Any, values: Values, result: Training, seed: int) -> None:
    unit = "nats per token" if isinstance(values, Characters) else "nats per event"
    with outputs.whole(folder / "learning_curve.png") as beside:
        save_learning_curve(beside, result.history, unit=unit)
    if isinstance(values, Characters):
        tokens, _ = model.sample(1, 1000, seed=seed)
        outputs.write_samples(folder / "sample.txt", tokens[0], values)
        return
    drawn = model.sample(20, seed=seed)
    if isinstance(values, Table):
        outputs.write_samples(folder / "samples.csv", drawn, values)
    elif outputs.is_image(values):
        outputs.write_samples(folder / "samples.png", drawn, values, columns=10)
    else:
        outputs.write_samples(folder / "samples.txt", drawn, values)


def measure(model: Any, events: Tensor, values: Values) -> dict[str, Any]:
    """The figures of a part of the data."""
    if isinstance(values, Characters):
        own = Text(events, events, events).judge(model, on_model(events, model))
        characters = int(values.vocabulary.characters(events).sum())
        per_token = own.item()
        return {
            "nats_per_token": per_token,
            "bits_per_character": -per_token * len(events) / max(1, characters) / math.log(2),
            "tokens": len(events),
        }
    found = nats(model, events, values)
    if not len(found):
        raise ValueError("data: the part must have events, got none")
    error = found.std().item() / len(found) ** 0.5 if len(found) > 1 else None
    bits = -found.mean().item() / math.prod(values.event_shape) / math.log(2)
    return {"nats": found.mean().item(), "standard_error": error, "bits_per_variable": bits, "events": len(found)}


def new_config(
    name: str, options: dict[str, Any], source: str, values: Values, settings: Settings, seed: int, **others: Any
) -> dict[str, Any]:
    """config.json of a run."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "ar_fast_version": __version__,
        "model": {"name": name, "options": options},
        "data": {"source": source},
        "values": values.config(),
        "settings": asdict(settings),
        "seed": seed,
        **others,
    }
