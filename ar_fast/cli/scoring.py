"""Scores of events: read in blocks where the file allows it, and written as they come."""

from __future__ import annotations

import contextlib
import csv
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO

import numpy as np
import torch

from .._progress import progress_bar
from . import outputs, runs, sources
from .values import Numbers

# So many numbers are read, scored and written at a time, whatever the length of the file.
BLOCK_ELEMENTS = 2**20


class Blocks:
    """The events of a .npy file in the file's order, encoded block by block.

    Raises:
        ValueError: if the file is none of plain numbers, or its events are not the model's.
    """

    def __init__(self, path: Path, values: Numbers) -> None:
        self._path, self._values = path, values
        array = sources.read_npy(path, mapped=True)
        self._count = len(array)
        self._rows = max(1, BLOCK_ELEMENTS // max(1, array[:1].size))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[torch.Tensor]:
        for start in range(0, self._count, self._rows):
            # The file is mapped anew for each block: pages of a mapping stay resident for as long as it lives.
            block = np.array(sources.read_npy(self._path, mapped=True)[start : start + self._rows])
            yield self._values.encode(block, first=start)


def blocks_of(run: runs.Run, data: str | None) -> Blocks | None:
    """The events of ``data``, by default the run's own, in blocks; None if they do not lie in a .npy file."""
    data = data or run.data
    path = Path(data)
    if data in sources.SHIPPED or path.suffix.lower() != ".npy" or not path.is_file():
        return None
    return Blocks(path, run.values) if isinstance(run.values, Numbers) else None


class Writer(Protocol):
    """Takes rows of scores, (N, columns)."""

    def add(self, rows: np.ndarray) -> None: ...


class _Csv:
    def __init__(self, file: TextIO, names: Sequence[str], whole: Sequence[str]) -> None:
        self._writer, self._whole = csv.writer(file), {names.index(name) for name in whole}
        self._writer.writerow(names)

    def add(self, rows: np.ndarray) -> None:
        columns = [(own.astype(np.int64) if index in self._whole else own).tolist() for index, own in enumerate(rows.T)]
        self._writer.writerows(zip(*columns, strict=True))


class _Npz:
    """An array for each column. A column can only be written once all rows are there, so that the rows wait in a
    temporary file: each block column by column, so that no number is read more than once."""

    def __init__(self, file: BinaryIO, names: Sequence[str], whole: Sequence[str]) -> None:
        self._file, self._names, self._whole = file, names, whole
        self._blocks: list[int] = []

    def add(self, rows: np.ndarray) -> None:
        self._blocks.append(len(rows))
        self._file.write(np.ascontiguousarray(rows.T, np.float64).data)

    def write(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:
            for index, name in enumerate(self._names):
                dtype = np.dtype(np.int64 if name in self._whole else np.float64)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    header = {"descr": dtype.str, "fortran_order": False, "shape": (sum(self._blocks),)}
                    np.lib.format.write_array_header_1_0(file, header)
                    start = 0
                    for count in self._blocks:
                        self._file.seek(8 * (start + index * count))
                        column = np.frombuffer(self._file.read(8 * count), np.float64)
                        file.write(column.astype(dtype).data)
                        start += count * len(self._names)


@contextlib.contextmanager
def writer(path: Path, names: Sequence[str], whole: Sequence[str]) -> Iterator[Writer]:
    """Writes a .csv or .npz file of these columns; those named in ``whole`` hold integers. What is there takes the
    place of ``path`` if nothing was raised."""
    with outputs.whole(path) as beside:
        if path.suffix.lower() == ".csv":
            with open(beside, "w", newline="", encoding="utf-8") as file:
                yield _Csv(file, names, whole)
        else:
            with tempfile.TemporaryFile(dir=path.parent) as waiting:
                made = _Npz(waiting, names, whole)
                yield made
                made.write(beside)


def scored(run: runs.Run, events: Any, *, per_variable: bool) -> Iterator[np.ndarray]:
    """For each block its scores, (N, 1), or (N, 1 + D) with the surprise of each variable behind the score.

    ``events`` are Blocks, or what a source holds, encoded, which is one block.
    """
    streamed = isinstance(events, Blocks)
    with progress_bar(total=len(events), desc="scoring", unit="event", show=streamed) as bar:
        for block in events if streamed else [events]:
            if per_variable:
                terms = runs.nats(run.density, block, run.values, per_variable=True, show=not streamed).numpy()
                yield np.concatenate([terms.sum(1, keepdims=True), -terms], 1)
            else:
                yield runs.scores(run.density, block, run.values, show=not streamed).numpy()[:, None]
            bar.update(len(block))
