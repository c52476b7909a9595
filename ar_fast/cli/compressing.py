"""ar-fast compress and ar-fast decompress: files without loss, in about as many bits as the model's -log2 p."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from .. import flows
from ..compression import compress as to_bytes
from ..compression import decompress as from_bytes
from ..compression import read_header
from ..models import OffsetNADE
from . import outputs, runs, sources
from .values import Characters, Numbers, Table, Values

_PATH = click.Path(path_type=Path)


def _opened(run: str) -> runs.Run:
    opened = runs.open_run(run, "cpu")
    values = opened.values
    real = values.reals if isinstance(values, Table) else isinstance(values, Numbers) and values.values == "reals"
    if isinstance(opened.model, flows.MAF) or real:
        raise ValueError(f"RUN: values must be bits, levels, categories or characters to be compressed, got {run}: "
                         f"{values.description}")  # fmt: skip
    return opened


def _threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def _resized(model: Any, values: Values, size: tuple[int, ...]) -> tuple[Any, Values]:
    """An offset-nade and its values for images of another size."""
    if not (isinstance(model, OffsetNADE) and isinstance(values, Numbers)):
        return model, values
    if not len(size) == len(values.event_shape) >= 2 or size[:-2] != values.event_shape[:-2]:
        return model, values
    return model.resized(size), Numbers(size, values.values, None, values.levels)


def _kept_whole(source: sources.Source, values: Numbers) -> Numbers:
    """Values that change nothing of the source's."""
    if source.pictures and (values.values, values.levels) != ("levels", 256):
        raise ValueError(f"GIVEN: a picture has 256 levels, and {values.description} would not keep it")
    if values.threshold is None:
        return values
    if not all(np.isin(array, (0, 1)).all() for array in source.parts.values()):
        raise ValueError(
            f"GIVEN: must hold 0 and 1, which a threshold makes of other numbers without a way back, got {source.name}"
        )
    return Numbers(values.event_shape, values.values)


@click.command()
@click.argument("run")
@click.argument("given")
@click.argument("out", type=_PATH)
@click.option("--chunk", type=click.IntRange(1), help="Events, or tokens, that are coded one after another.")
@click.option("--verify/--no-verify", default=True, help="Decompress the result and compare.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; by default torch's.")
def compress(run, given, out, chunk, verify, threads):
    """Compresses a file without loss by a trained model: bits, levels, categories or text.

    GIVEN is an array, an image, a folder of images, a table or a text, as the model was trained on; OUT is an .arf
    file. An offset-nade compresses images of any size.
    """
    _threads(threads)
    outputs.check(out, (".arf",))
    opened = _opened(run)
    model, values = opened.model, opened.values
    source = sources.read(given)
    if source.kind != values.kind:
        raise ValueError(f"GIVEN: must be {values.description}, as of the model, got the {source.kind} {source.name}")
    parts = list(source.parts.values())
    if isinstance(values, Numbers):
        model, values = _resized(model, _kept_whole(source, values), parts[0].shape[1:])
    encoded = [values.encode(part) for part in parts]
    x = encoded[0] if len(encoded) == 1 else torch.cat(encoded)
    data = to_bytes(model, x, chunk=chunk, verify=verify, progress=True)
    with outputs.whole(out) as beside:
        beside.write_bytes(data)
    count, unit = (len(x), "tokens") if isinstance(values, Characters) else (x.numel(), "values")
    click.echo(f"{count} {unit} in {len(data)} bytes, {8 * len(data) / max(1, count):.4f} bits each, written to {out}")


def _endings(values: Values) -> tuple[str, ...]:
    if isinstance(values, Numbers):
        return (".npy", ".npz", ".png") if outputs.is_image(values) and values.levels == 256 else (".npy", ".npz")
    return (".txt",) if isinstance(values, Characters) else (".csv", ".parquet")


@click.command()
@click.argument("run")
@click.argument("given", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--threads", type=click.IntRange(1), help="CPU threads; by default torch's.")
def decompress(run, given, out, threads):
    """Gives back what compress read, from an .arf file and the same model.

    OUT is a .npy or .npz file, a .png of one image of 256 levels, a .csv of a table, or a .txt of a text.
    """
    _threads(threads)
    opened = _opened(run)
    model, values = opened.model, opened.values
    outputs.check(out, _endings(values))
    data = given.read_bytes()
    if isinstance(values, Numbers):
        model, values = _resized(model, values, tuple(read_header(data)[0].shape[1:]))
    x = from_bytes(model, data, progress=True)
    if out.suffix.lower() == ".png":
        if len(x) != 1:
            raise ValueError(f"--out: a .png is one image, got {len(x)}: take .npy")
        from PIL import Image

        with outputs.whole(out) as beside:
            Image.fromarray(outputs.shades(values.decode(x), values)[0]).save(beside, optimize=True)
    elif isinstance(values, Characters):
        with outputs.whole(out) as beside:
            # As it is: a text file would get other ends of lines on some systems.
            beside.write_bytes(values.decode(x).encode())
    else:
        outputs.write_samples(out, x, values)
    click.echo(f"written to {out}")
