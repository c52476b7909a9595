"""Files that are written whole or not at all: samples as arrays, pictures, tables or text, and JSON."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from .pictures import image_grid
from .values import Characters, Numbers, Table, Values

# A drawing has about so many frames.
_FRAMES = 64
_SHADES = np.array(list(" .:-=+*#%@"))


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; what is there takes the place of ``path`` if nothing was raised.

    Raises:
        ValueError: if path is a folder, or no ordinary file.
        OSError: if it cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"--out: must be the name of a file, got {path}, which is none")
    beside = _beside(path)
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.stem}.tmp{path.suffix}")


def remove(path: Path) -> None:
    """Deletes a file, if it is there, and what a process that was killed may have left beside it."""
    for each in (path, _beside(path)):
        each.unlink(missing_ok=True)


def check(path: Path | None, endings: Sequence[str]) -> None:
    """Raises what writing would raise, before the work is done: for another ending, or where nothing can be written."""
    if path is None:
        return
    if path.suffix.lower() not in endings:
        raise ValueError(f"--out: must end in one of {', '.join(endings)} here, got {path}")
    with contextlib.suppress(_Only), whole(path) as beside:
        beside.touch()
        raise _Only


def check_folder(path: Path) -> None:
    """Makes a folder; raises if that is not possible, or nothing can be written into it, before the work is done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"--out: must be a folder, got {path}, which is a file") from None
    check(path / "tried.txt", (".txt",))


class _Only(Exception):
    """Writing was only tried."""


def write_json(path: Path, value: Any) -> None:
    with whole(path) as beside:
        beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_lines(path: Path, rows: list[Any]) -> None:
    """Each row as JSON in a line of its own."""
    with whole(path) as beside:
        beside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def is_image(values: Values) -> TypeGuard[Numbers]:
    """Whether events can be shown: (height, width), or (channels, height, width) with 1 or 3 channels."""
    shape = values.event_shape
    return isinstance(values, Numbers) and (len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3)))


def endings(values: Values) -> tuple[str, ...]:
    """What samples can be written as."""
    if isinstance(values, Characters):
        return (".txt", ".npz", ".npy")
    if isinstance(values, Table):
        return (".csv", ".npz", ".npy", ".txt", ".parquet")
    return (".npz", ".npy", ".txt", *((".png",) if is_image(values) else ()), ".csv")


def shades(array: np.ndarray, values: Any, *, bright: bool = False) -> np.ndarray:
    """Events (N, height, width) or (N, 3, height, width) as (N, height, width) or (N, height, width, 3) in uint8.

    Bits (and the probability of 1) are dark ink on light paper, or if ``bright`` white on black; levels are grey from
    dark to light.
    """
    if array.ndim == 4:
        array = array.transpose(0, 2, 3, 1) if array.shape[1] == 3 else array[:, 0]
    if array.dtype == np.uint8 and values.values != "reals":
        # By a table: no number of a large picture ever takes more than its byte.
        table = _shades(np.arange(2 if values.values == "binary" else values.levels), values, bright)
        return np.frombuffer(array.tobytes().translate(table.tobytes().ljust(256)), np.uint8).reshape(array.shape)
    return _shades(array, values, bright)


def _shades(array: np.ndarray, values: Numbers, bright: bool) -> np.ndarray:
    array = array.astype(np.float64)
    if values.values == "binary":
        return (255 * array if bright else 255 - 225 * array).astype(np.uint8)
    if values.values == "reals":
        low, high = array.min(), array.max()
        return (255 * (array - low) / max(high - low, 1e-12)).round().astype(np.uint8)
    return (255 * array / (values.levels - 1)).round().astype(np.uint8)


def as_text(x: Tensor, values: Values) -> str:
    """Samples for a terminal."""
    decoded = values.decode(x)
    if isinstance(values, Characters):
        return decoded
    return decoded.to_csv(index=False, sep="\t") if isinstance(values, Table) else _as_text(decoded, values, ".txt")


def write_samples(path: Path, x: Tensor, values: Values, *, columns: int | None = None, bright: bool = False) -> None:
    """Writes samples (N, *event_shape) as the ending of path says: .npz (array "samples"), .npy, .png, .txt, .csv."""
    path, suffix = Path(path), Path(path).suffix.lower()
    if suffix not in endings(values):
        raise ValueError(f"--out: must end in one of {', '.join(endings(values))} here, got {path}")
    decoded = values.decode(x)
    with whole(path) as beside:
        if suffix == ".png":
            from PIL import Image

            Image.fromarray(image_grid(shades(decoded, values, bright=bright), columns)).save(beside, optimize=True)
        elif suffix in (".npz", ".npy"):
            if isinstance(values, Table):
                # Categories by their numbers, so that nothing needs to be pickled.
                decoded = x.detach().cpu().numpy() if values.std is None else decoded.to_numpy(np.float32)
            with open(beside, "wb") as file:
                np.savez_compressed(file, samples=decoded) if suffix == ".npz" else np.save(file, decoded)
        elif isinstance(values, Table):
            if suffix == ".parquet":
                decoded.to_parquet(beside)
            else:
                decoded.to_csv(beside, index=False, sep="\t" if suffix == ".txt" else ",")
        elif isinstance(values, Characters):
            beside.write_text(decoded, encoding="utf-8")
        else:
            beside.write_text(_as_text(decoded, values, suffix), encoding="utf-8")


def write_preview(path: Path, x: Tensor, drawn: Tensor, values: Numbers) -> None:
    """A PNG of images x (N, *event_shape), light where a variable is not in drawn (*event_shape) yet."""
    from PIL import Image

    picture = shades(values.decode(x), values).copy()
    known = drawn.cpu().numpy()
    known = known if known.ndim == 2 else known.transpose(1, 2, 0) if picture.ndim == 4 else known[0]
    np.copyto(picture, 238, where=~known)
    with whole(path) as beside:
        Image.fromarray(image_grid(picture)).save(beside, compress_level=1)


def _as_text(decoded: np.ndarray, values: Any, suffix: str) -> str:
    """A picture of characters for each image, a line of numbers for each other event."""
    if suffix == ".csv" or not is_image(values) or len(values.event_shape) == 3:
        separator = "," if suffix == ".csv" else " "
        return "".join(separator.join(map(str, row.tolist())) + "\n" for row in decoded.reshape(len(decoded), -1))
    if values.values == "binary":
        drawn = np.where(decoded > 0, "#", ".")
    else:
        drawn = _SHADES[(shades(decoded, values).astype(int) * (len(_SHADES) - 1) + 127) // 255]
    return "\n".join("".join("".join(line) + "\n" for line in image.tolist()) for image in drawn)


@torch.no_grad()
def write_frames(path: Path, model: Any, drawn: Tensor, values: Any) -> None:
    """A GIF of images that appear in the order in which they were drawn; beside them what was expected of each pixel
    when its turn came: p(x_i = 1 | x_<i) of bits, the mean of levels."""
    from PIL import Image

    if not is_image(values) or values.values not in ("binary", "levels"):
        raise ValueError(f"--frames: must be of images of bits or levels, got {values.description}")
    expected = model.head.mean(model(drawn)).reshape(drawn.shape).cpu().numpy()
    pictures = [shades(array, values) for array in (values.decode(drawn), expected)]
    order = np.arange(model.variables) if model.order is None else model.order.cpu().numpy()
    seen, frames = np.zeros(model.variables, bool), []
    for some in np.array_split(order, min(_FRAMES, len(order))):
        seen[some] = True
        known = seen.reshape(model.event_shape)
        known = known if known.ndim == 2 else known.transpose(1, 2, 0)
        known = known[..., 0] if pictures[0].ndim == 3 and known.ndim == 3 else known
        grids = [image_grid(np.where(known, picture, 238), max(1, round(len(picture) ** 0.5))) for picture in pictures]
        frames.append(Image.fromarray(np.concatenate(grids, 1)))
    with whole(path) as beside:
        frames[0].save(beside, save_all=True, append_images=[*frames[1:], *frames[-1:] * 20], duration=80, loop=0)
