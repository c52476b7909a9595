"""Lossless compression with a trained model: an event takes about -log2 p(x) bits.

The kernels that draw a model's samples compute the same conditionals here, variable by variable, in both directions; a
range coder in them (csrc/kernels/range_coder.h) turns integer intervals into bits and back. docs/compression.md
describes the file.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from . import _library
from ._progress import progress_bar
from ._version import __version__
from .heads.base import is_whole
from .models import CharRNN
from .models._files import content, digest
from .models.base import AutoregressiveModel
from .models.sampling import Sampling, block_rows, make_request, step_positions

__all__ = ["compress", "decompress"]

_MAGIC, _VERSION = b"ar_fast", 1
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64,
)}  # fmt: skip
# A chunk has about so many symbols unless it is asked for another size: more chunks decode together faster, and each
# costs 8 bytes and up to 4 that its stream is longer than its bits.
_EVENT_SYMBOLS, _TEXT_SYMBOLS = 2**18, 2**15
# A chunk of several events has at most so many, and so many chunks are decoded together at most: this bounds the memory
# that a file can ask for.
_MOST_SYMBOLS, _MOST_LANES = 2**22, 4096
_TEXT_LANES = 256
# Tokens that one call of the sampling op codes in each chunk, at most.
_TEXT_STEP = 1024
_PROBED = 256
# Of a variable's values: range_most_symbols in csrc/kernels/range_coder.h.
_MOST_VALUES = 2**20


@dataclass(frozen=True)
class Header:
    """What compressed data say of themselves."""

    model: str  # 16 hexadecimal digits of the hash of its weights and arguments
    kernel: int  # the checksum of a fixed event's bits: it changes with the kernels' arithmetic
    isa: str
    dtype: str  # of the model's parameters
    torch: str
    ar_fast: str
    x: str  # its dtype
    shape: list[int]  # (*batch, *event_shape), or (T) of a text
    chunk: int  # events, or tokens of a text, in each chunk but the last one
    lanes: int  # chunks that were coded together


class _Coded:
    """A model's events, or the tokens of its texts, as rows of integers that chunks are made of."""

    def __init__(self, model: Any, verb: str) -> None:
        self.model, self.is_text = model, isinstance(model, CharRNN)
        if not isinstance(model, AutoregressiveModel | CharRNN):
            raise ValueError(
                f"{verb}: model must be a NADE, MADE, RNN, CharRNN or another model of ar_fast.models that draws one "
                f"variable at a time, got {type(model).__name__}"
            )
        if _library._C is None:
            raise ValueError(f"{verb}: needs the compiled ops of ar_fast, but the references run, {_library.because}")
        if model.device.type != "cpu":
            raise ValueError(f"{verb}: model must be on the CPU, whose kernels alone code, got {model.device}")
        if self.is_text:
            self.variables, sizes = 1, [len(model.vocabulary)]
            return self._take(sizes, verb)
        if model.context_features:
            raise ValueError(f"{verb}: model must have no context, got context_features {model.context_features}")
        events: Any = model
        self.variables = events.variables
        self._take(events.head.sizes(events.variables), verb)
        request = make_request(events, 1, None, 0, None, 0, None, None, False, 1.0)
        self._request, self._sampler = request, events._sampler(request)

    def _take(self, sizes: list[int | None], verb: str) -> None:
        for variable, size in enumerate(sizes):
            if size is None:
                raise ValueError(
                    f"{verb}: every variable must have finitely many values, got a real one at index {variable}: its "
                    "digits have no bits; a LogisticMixture with levels has"
                )
            if size > _MOST_VALUES:
                raise ValueError(
                    f"{verb}: a variable must have at most {_MOST_VALUES} values, got {size} at index {variable}"
                )
        self.sizes = torch.tensor(sizes)

    @property
    def lanes(self) -> int:
        """How many chunks are coded together at most."""
        rows = _TEXT_LANES if self.is_text else block_rows(self.model, self._sampler.state_features)
        return min(rows, _MOST_LANES)

    def rows(self, x: Tensor) -> Tensor:
        """x as (N, D), or a text as (T, 1); ValueError for what the model gives no probability."""
        if not isinstance(x, Tensor) or x.device.type != "cpu" or str(x.dtype).removeprefix("torch.") not in _DTYPES:
            got = f"{x.dtype} on {x.device}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"compress: x must be a tensor of real numbers on the CPU, got {got}")
        if self.is_text:
            if x.dim() != 1 or x.is_floating_point() or x.dtype == torch.bool:
                raise ValueError(f"compress: x must be integer tokens (T), got {x.dtype} of shape {tuple(x.shape)}")
            rows = x.reshape(-1, 1)
        else:
            shape = tuple(self.model.event_shape)
            if x.dim() < len(shape) or tuple(x.shape[x.dim() - len(shape) :]) != shape:
                raise ValueError(f"compress: x must have shape (*batch, *{shape}), got {tuple(x.shape)}")
            rows = x.reshape(-1, self.variables)
        allowed = is_whole(rows, self.sizes)
        if not bool(allowed.all()):
            row, variable = (~allowed).nonzero()[0].tolist()
            raise ValueError(
                f"compress: values must be whole numbers in 0 ... {int(self.sizes[variable]) - 1}, got "
                f"{rows[row, variable].item()} in variable {variable} of row {row}"
            )
        return rows

    def values(self, rows: Tensor) -> Tensor:
        """Rows as the sampling ops take them."""
        dtype = self.model.compute_dtype
        return (rows if self.is_text else self.model.head.encode(rows, dtype)).to(dtype)

    def encode(self, rows: Tensor, chunk: int, lanes: int, advanced: Callable[[int], object]) -> Iterator[bytes]:
        """The stream of each chunk."""
        for first in range(0, len(rows), chunk * lanes):
            pieces = rows[first : first + chunk * lanes].split(chunk)
            if self.is_text:
                for together in _alike(pieces):
                    values = self.values(torch.cat([pieces[lane] for lane in together], 1).T)
                    encoder = _library._C.StreamEncoder(len(together))
                    self._code_text(encoder, values.shape[1], len(together), advanced, values)
                    yield from encoder.finish()
                continue
            encoder = _library._C.StreamEncoder(len(pieces))
            for number in range(len(pieces[0])):
                values = self.values(torch.stack([piece[number] for piece in pieces if number < len(piece)]))
                self._code_events(encoder, len(values), advanced, values)
            yield from encoder.finish()

    def decode(
        self, streams: Sequence[bytes], count: int, chunk: int, lanes: int, advanced: Callable[[int], object]
    ) -> Iterator[Tensor]:
        """The rows of each chunk, int64."""
        for first in range(0, len(streams), lanes):
            own = streams[first : first + lanes]
            lengths = [min(chunk, count - number * chunk) for number in range(first, first + len(own))]
            if self.is_text:
                for together in _alike(range(length) for length in lengths):
                    decoder = _library._C.StreamDecoder([own[lane] for lane in together])
                    tokens = self._code_text(decoder, lengths[together[0]], len(together), advanced)
                    yield from tokens.unsqueeze(-1)
                continue
            decoder, drawn = _library._C.StreamDecoder(own), []
            for number in range(lengths[0]):
                running = sum(number < length for length in lengths)
                drawn.append(self._code_events(decoder, running, advanced).long())
            for lane, length in enumerate(lengths):
                yield torch.stack([rows[lane] for rows in drawn[:length]])

    def _code_events(self, coder: Any, rows: int, advanced: Callable[[int], object], *values: Tensor) -> Tensor:
        sampling = Sampling(self._request, self._sampler, slice(0, rows))
        _code(sampling, step_positions(self._sampler), coder, lambda count: advanced(count * rows), *values)
        return sampling._events()

    def _code_text(
        self, coder: Any, length: int, rows: int, advanced: Callable[[int], object], *values: Tensor
    ) -> Tensor:
        sampling = self.model.sampling(rows, length, seed=0)
        positions = min(_TEXT_STEP, self.model._positions_of_a_call(rows))
        _code(sampling, positions, coder, lambda count: advanced(count * rows), *values)
        return sampling.tokens

    def kernel(self) -> int:
        """A number that follows from the bits of a fixed event, or the first variables of a long one."""
        generator = torch.Generator().manual_seed(0)
        if self.is_text:
            x = torch.randint(int(self.sizes[0]), (1, _PROBED), generator=generator)
            sampling: Any = self.model.sampling(1, _PROBED, seed=0)
        else:
            x = (torch.rand(1, self.variables, generator=generator) * self.sizes).long().minimum(self.sizes - 1)
            sampling = Sampling(self._request, self._sampler, slice(0, 1))
        encoder = _library._C.StreamEncoder(1)
        encoder.begin(self.values(x))
        failed = True
        try:
            sampling.advance(_PROBED)
            failed = False
        finally:
            encoder.end(failed)
        return zlib.crc32(encoder.finish()[0])


def _fingerprint(model: Any) -> str:
    return digest(model).hex()[:16]


def _alike(pieces: Any) -> Iterator[list[int]]:
    """The lanes whose pieces have the same length, which only the last one's may not: they are coded together."""
    lengths = [len(piece) for piece in pieces]
    for length in dict.fromkeys(lengths):
        yield [lane for lane, own in enumerate(lengths) if own == length]


def _code(sampling: Any, positions: int, coder: Any, advanced: Callable[[int], object], *values: Tensor) -> None:
    while not sampling.done:
        before, failed = sampling.position, True
        coder.begin(*values)
        try:
            sampling.advance(positions)
            failed = False
        finally:
            coder.end(failed)
        advanced(sampling.position - before)


def _crc(rows: Tensor) -> int:
    """The checksum of a chunk's values."""
    return zlib.crc32(content(rows.long()))


@contextlib.contextmanager
def _instruction_set(name: str) -> Iterator[None]:
    """Within the block the kernels use this instruction set."""
    library = _library._C
    before = library.isa()
    try:
        library.set_isa(name)
    except RuntimeError as error:
        raise ValueError(
            f"decompress: data was compressed with the instruction set {name}, whose kernels alone compute the same "
            f"bits, and this machine or build has no more than {before}: {error}"
        ) from None
    try:
        yield
    finally:
        library.set_isa("auto")
        if library.isa() != before:
            library.set_isa(before)


@torch.no_grad()
def compress(model: Any, x: Tensor, *, chunk: int | None = None, verify: bool = True, progress: bool = False) -> bytes:
    """Compresses events without loss: each takes about -log2 p(x) bits under the model.

    The stream of a chunk has at most 0.1% and 32 bits more than -log2 p of its events, where these are at least 0.01
    bits per variable for bits and 0.2 for 256 values; a chunk takes 8 bytes besides, and a file about 200. Zeros with
    a sign come back without it.

    Args:
        model: a trained model on the CPU whose variables have finitely many values (Bernoulli, Categorical,
            LogisticMixture, or a PerVariable of these) and no context; or a CharRNN.
        x: (*batch, *event_shape) of whole numbers, on the CPU; for a CharRNN tokens (T), as ``encode`` returns them.
        chunk: how many events, or tokens, are coded one after another. Chunks are coded together, so that many small
            ones are faster; a text's chunk does not see the one before. None takes about 2^18 values, or 2^15 tokens.
        verify: decompress the result, and compare it with x.
        progress: show a progress bar, on a terminal or in a notebook.

    Returns:
        What ``decompress`` takes, with the same weights, the same build of ar_fast and a CPU that has the instruction
        set that ``ar_fast.info()["cpu_isa"]`` names here. It is not a format for archives: another version of ar_fast
        or torch may compute other last digits, which ``decompress`` notices.

    Raises:
        ValueError: for a model or values that cannot be compressed.
        RuntimeError: if the result does not decompress to x.

    Example:
        >>> from ar_fast.models import NADE
        >>> model = NADE(9, hidden_features=4)
        >>> x = model.sample(100, seed=0)
        >>> torch.equal(decompress(model, compress(model, x)), x)
        True
    """
    coded = _Coded(model, "compress")
    rows = coded.rows(x)
    size = 1 if coded.is_text else coded.variables
    if chunk is None:
        chunk = max(1, (_TEXT_SYMBOLS if coded.is_text else _EVENT_SYMBOLS) // size)
    if not isinstance(chunk, int) or chunk < 1 or (chunk > 1 and chunk * size > _MOST_SYMBOLS):
        raise ValueError(
            f"compress: chunk must be a positive integer, and a chunk of several events have at most {_MOST_SYMBOLS} "
            f"values, got {chunk!r}"
        )
    lanes = coded.lanes
    header = Header(
        model=_fingerprint(model),
        kernel=coded.kernel(),
        isa=_library._C.isa(),
        dtype=str(model.dtype).removeprefix("torch."),
        torch=torch.__version__,
        ar_fast=__version__,
        x=str(x.dtype).removeprefix("torch."),
        shape=list(x.shape),
        chunk=chunk,
        lanes=lanes,
    )
    described = json.dumps(asdict(header), separators=(",", ":")).encode()
    parts = [_MAGIC, bytes([_VERSION]), struct.pack("<I", len(described)), described]
    with progress_bar(
        total=rows.numel() * (1 + verify), desc="compressing", unit="value", unit_scale=True, show=progress
    ) as bar:
        pieces = rows.split(chunk) if len(rows) else ()
        for piece, stream in zip(pieces, coded.encode(rows, chunk, lanes, bar.update), strict=True):
            parts += [struct.pack("<II", len(stream), _crc(piece)), stream]
        parts.append(struct.pack("<I", zlib.crc32(b"".join(parts))))
        data = b"".join(parts)
        if verify and not torch.equal(_decompressed(model, data, bar.update), x):
            raise RuntimeError("compress: decompressing must give x again, and did not: nothing was compressed")
    return data


@torch.no_grad()
def decompress(model: Any, data: bytes, *, progress: bool = False) -> Tensor:
    """The events that :func:`compress` compressed, in their shape and dtype.

    Args:
        model: the model that compressed them, with the same weights in the same dtype.
        data: what ``compress`` returned.
        progress: show a progress bar, on a terminal or in a notebook.

    Raises:
        ValueError: if data is damaged or of another kind; for another model; if this machine or build has not the
            instruction set that data needs, or computes other bits.
    """
    with progress_bar(desc="decompressing", unit="value", unit_scale=True, show=progress) as bar:
        return _decompressed(model, data, bar.update)


def _decompressed(model: Any, data: bytes, advanced: Callable[[int], object]) -> Tensor:
    coded = _Coded(model, "decompress")
    header, body = read_header(bytes(data))
    own = _fingerprint(model)
    if header.model != own or header.dtype != str(model.dtype).removeprefix("torch."):
        raise ValueError(
            f"decompress: model must be the one that compressed, {header.model} in {header.dtype}, got {own} in "
            f"{str(model.dtype).removeprefix('torch.')}"
        )
    shape = tuple(model.event_shape) if not coded.is_text else ()
    count = math.prod(header.shape[: len(header.shape) - len(shape)])
    if tuple(header.shape[len(header.shape) - len(shape) :]) != shape or (coded.is_text and len(header.shape) != 1):
        raise ValueError(f"decompress: data must hold events of shape {shape}, got {header.shape}")
    if header.chunk > 1 and header.chunk * (1 if coded.is_text else coded.variables) > _MOST_SYMBOLS:
        raise ValueError(f"decompress: data is damaged: its chunks have {header.chunk} events")
    streams, sums = _chunks(body, -(-count // header.chunk))
    with _instruction_set(header.isa):
        if (kernel := coded.kernel()) != header.kernel:
            raise ValueError(
                f"decompress: this build must compute the bits that compressed, with kernel {header.kernel} of ar_fast "
                f"{header.ar_fast} and torch {header.torch}, got kernel {kernel} of {__version__} and "
                f"{torch.__version__}"
            )
        rows = []
        for number, piece in enumerate(coded.decode(streams, count, header.chunk, header.lanes, advanced)):
            if _crc(piece) != sums[number]:
                raise ValueError(
                    f"decompress: chunk {number} must have the checksum {sums[number]}, got {_crc(piece)}: this build "
                    f"computes other bits than that of ar_fast {header.ar_fast} and torch {header.torch} which "
                    "compressed"
                )
            rows.append(piece.to(_DTYPES[header.x]))
    if not rows:
        return torch.zeros(header.shape, dtype=_DTYPES[header.x])
    return torch.cat(rows).reshape(header.shape)


def _damaged(why: str) -> ValueError:
    return ValueError(f"decompress: data must be what compress returned: {why}")


def read_header(data: bytes) -> tuple[Header, bytes]:
    """The header, and the chunks behind it."""
    start = len(_MAGIC) + 5
    if data[: len(_MAGIC)] != _MAGIC:
        raise _damaged("it begins with something else")
    if len(data) < start + 4:
        raise _damaged(f"it is cut off after {len(data)} bytes")
    if data[len(_MAGIC)] != _VERSION:
        raise _damaged(f"its format must be {_VERSION}, got {data[len(_MAGIC)]}")
    if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise _damaged("it is damaged or cut off, its checksum does not fit")
    (length,) = struct.unpack("<I", data[len(_MAGIC) + 1 : start])
    try:
        described = json.loads(data[start : min(start + length, len(data) - 4)])
        header = Header(**described)
        for field in fields(Header):
            value = getattr(header, field.name)
            numbers = value if isinstance(value, list) else [value]
            kind = str if field.type == "str" else int
            if not all(type(number) is kind for number in numbers) or isinstance(value, list) != (
                field.name == "shape"
            ):
                raise ValueError(f"{field.name} is {value!r}")
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged(f"its header is not one: {error}") from None
    if (
        header.x not in _DTYPES
        or header.chunk < 1
        or not 1 <= header.lanes <= _MOST_LANES
        or min([0, *header.shape]) < 0
    ):
        raise _damaged("its header is not one")
    return header, data[start + length : -4]


def _chunks(body: bytes, count: int) -> tuple[list[bytes], list[int]]:
    """The streams, and the checksums of their events."""
    streams, sums, at = [], [], 0
    while at + 8 <= len(body):
        length, checksum = struct.unpack_from("<II", body, at)
        if length > len(body) - at - 8 or length % 4:
            break
        streams.append(body[at + 8 : at + 8 + length])
        sums.append(checksum)
        at += 8 + length
    if at != len(body) or len(streams) != count:
        raise _damaged(f"it must have {count} chunks, got {len(streams)}")
    return streams, sums
