"""What is fuzzed: readers of files, each with valid files to begin with. A target is a line of ``TARGETS``."""

from __future__ import annotations

import functools
import gzip
import io
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ar_fast import compress, decompress, flows, heads, models
from ar_fast.cli import sources


@dataclass(frozen=True)
class Target:
    """A reader of files.

    Attributes:
        files: valid inputs, each a dictionary of contents by file name.
        read: reads the folder in which such files stand; only FileNotFoundError and ValueError may come of it.
        sealed: makes a file's content consistent again after a mutation, as checksums are.
        slack: bytes that a case may take whatever its files hold. What readers import and the pools of torch and glibc
            are there once the valid files have been read, but a pool may grow.
    """

    files: Callable[[], list[dict[str, bytes]]]
    read: Callable[[Path], object]
    sealed: Callable[[bytes], bytes] = lambda content: content
    slack: int = 32 * 2**20


def _saved(*made: Callable[[], object]) -> list[dict[str, bytes]]:
    inputs = []
    for make in made:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            make().save(folder)
            files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            inputs.append({str(path.relative_to(folder)): path.read_bytes() for path in files})
    return inputs


def _models() -> list[dict[str, bytes]]:
    mixed = heads.PerVariable([heads.Categorical(3), heads.GaussianMixture(2), heads.Bernoulli()])
    return _saved(
        lambda: models.NADE((1, 2, 2), 3, order=[2, 0, 3, 1]),
        lambda: models.NADE(3, 2, head=mixed, context_features=2),
        lambda: models.MADE(4, [5, 5], degrees="random", n_masks=2, n_orders=2),
        lambda: models.DeepNADE(3, [4, 3], head=heads.Categorical([2, 1, 3])),
        lambda: models.OffsetNADE((2, 3), 2, window=(1, 1), head=heads.LogisticMixture(1, levels=5)),
        lambda: models.RNN(3, 2, "lstm", 2),
        lambda: models.CharRNN("abc", 3),
        lambda: models.Ensemble([models.ARMLP(3, 2), models.FVSBN(3)]),
    )


def _flows() -> list[dict[str, bytes]]:
    return _saved(
        lambda: flows.MAF(3, transforms=2, hidden_features=(4,)),
        lambda: flows.MAF(2, 1, transforms=1, hidden_features=(3, 3), univariate=flows.Spline(bins=3)),
    )


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


_ARRAYS = [np.arange(12).astype(kind).reshape(3, 4) for kind in ("u1", "f4", "<i8", ">f8", "?")]


def _zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", content)
    return file.getvalue()


def _zip_of_parts() -> bytes:
    file = io.BytesIO()
    np.savez(file, train=_ARRAYS[0], validation=_ARRAYS[0], test=_ARRAYS[0])
    return file.getvalue()


def _idx() -> list[dict[str, bytes]]:
    plain = b"\0\0\x08\x03" + struct.pack(">3I", 2, 3, 4) + bytes(range(24))
    wide = b"\0\0\x0d\x02" + struct.pack(">2I", 2, 3) + np.arange(6, dtype=">f4").tobytes()
    return [{"data": plain}, {"data": wide}, {"data": gzip.compress(plain)}, {"data": gzip.compress(b"a text")}]


def _pictures() -> list[dict[str, bytes]]:
    from PIL import Image

    inputs = []
    for mode, kind in (("L", "png"), ("RGB", "png"), ("RGBA", "png"), ("1", "png"), ("P", "png"), ("RGB", "jpeg")):
        file = io.BytesIO()
        Image.new(mode, (5, 7)).save(file, kind)
        inputs.append({"data.jpg" if kind == "jpeg" else "data.png": file.getvalue()})
    return inputs


def _checksums(content: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what they hold; other contents as they are."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    out, at = bytearray(content[:8]), 8
    while at + 12 <= len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunk = content[at + 4 : at + 8 + size]
        if len(chunk) < 4 + size:
            break
        out += content[at : at + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        at += 12 + size
    return bytes(out) + content[at:]


def _read(folder: Path) -> object:
    (path,) = folder.iterdir()
    return sources.read(str(path))


@functools.cache
def _compressors() -> dict[str, object]:
    """Models by the names of the files that they have compressed."""
    torch.manual_seed(0)
    mixed = heads.PerVariable([heads.Categorical(3), heads.LogisticMixture(1, levels=9), heads.Bernoulli()])
    return {
        "bits.arf": models.NADE((2, 5), 3),
        "mixed.arf": models.NADE(3, 2, head=mixed),
        "levels.arf": models.MADE(4, [5], head=heads.LogisticMixture(2, levels=256)),
        "text.arf": models.CharRNN("abc", 4),
    }


def _compressed() -> list[dict[str, bytes]]:
    inputs = []
    for name, model in _compressors().items():
        drawn = model.sample(1, 40, seed=0)[0][0] if name == "text.arf" else model.sample(40, seed=0)
        inputs += [{name: compress(model, drawn, chunk=chunk)} for chunk in (7, None)]
    return inputs


def _decompress(folder: Path) -> object:
    (path,) = folder.iterdir()
    return decompress(_compressors()[path.name], path.read_bytes())


def _summed(content: bytes) -> bytes:
    """Compressed data that end with the checksum of what stands before."""
    return content[:-4] + struct.pack("<I", zlib.crc32(content[:-4]))


_CSV = b"name,kind,value\na,1,0.5\nb,2,-3e7\n,3,nan\n"

TARGETS = {
    "models": Target(_models, models.load),
    "flows": Target(_flows, flows.load),
    "npy": Target(lambda: [{"data.npy": _npy(array)} for array in _ARRAYS], _read),
    # Mutated before they are compressed, or nearly every case would end at a checksum; and after it.
    "npz": Target(lambda: [{"data.npz": _npy(array)} for array in _ARRAYS], _read, _zipped),
    "zip": Target(lambda: [{"data.npz": _zipped(_npy(_ARRAYS[0]))}, {"data.npz": _zip_of_parts()}], _read),
    "idx": Target(_idx, _read),
    "csv": Target(lambda: [{"data.csv": _CSV}], _read),
    # A picture of one colour is hardly a file: 2^24 pixels are read, whatever the file.
    "pictures": Target(_pictures, _read, _checksums, slack=256 * 2**20),
    # Nearly every case would end at its checksum; the other target has those.
    "compressed": Target(_compressed, _decompress, _summed),
    "unsummed": Target(_compressed, _decompress),
}
