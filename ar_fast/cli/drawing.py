"""ar-fast sample: events that can be looked at as they are drawn, and gone on with after an interrupt.

Beside a file b.png that is being drawn for longer than a second stand b.png.part.safetensors, from which the drawing
goes on, and b.png.part.png, what is drawn so far. They go when b.png is there.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch

from .. import flows
from .._progress import progress_bar
from ..models import Ensemble, OffsetNADE, Sampling
from ..models._memory import free_memory
from ..models.sampling import drawn_together
from ..tasks import distributed
from ..tasks.checkpoints import Checkpoint
from . import kinds, outputs, runs
from .values import Numbers, Values

# The state and the preview are written every so many seconds, and rarely enough to take a twentieth of the time.
_SECONDS, _SHARE = 1.0, 20


@dataclass(frozen=True)
class Wanted:
    """What is drawn: all that the same drawing in another process needs."""

    run: str
    count: int
    size: str | None
    temperature: float
    seed: int
    device: str
    dtype: str | None

    @classmethod
    def read(cls, values: Any) -> Wanted:
        """From a state's JSON."""
        types = {"run": str, "count": int, "size": str, "temperature": float, "seed": int, "device": str, "dtype": str}
        none = ("size", "dtype")
        if not isinstance(values, dict) or values.keys() != types.keys():
            raise ValueError(f"it must have {', '.join(types)}, got {values!r}")
        for name, kind in types.items():
            if not (isinstance(values[name], kind) or (name in none and values[name] is None)):
                raise ValueError(f"{name} must be {kind.__name__}, got {values[name]!r}")
        if values["dtype"] not in (None, *runs.DTYPES):
            raise ValueError(f"dtype must be one of {', '.join(runs.DTYPES)}, got {values['dtype']!r}")
        return cls(**values)

    def open(self) -> tuple[Any, Values]:
        """The model, of the size that is drawn, and its values."""
        opened = runs.open_events(self.run, self.device, self.dtype, "sample")
        model, values = opened.density, opened.values
        if self.size is None:
            _check_memory(self.count, values.event_shape)
            return model, values
        if not isinstance(model, OffsetNADE) or not isinstance(values, Numbers):
            raise ValueError(f"--size: only offset-nade draws events of another size, got {type(model).__name__}")
        shape = (*values.event_shape[:-2], *kinds.sizes(self.size, "--size"))
        _check_memory(self.count, shape)
        return model.resized(shape), Numbers(shape, values.values, values.threshold, values.levels)


def _check_memory(count: int, shape: tuple[int, ...]) -> None:
    needed, free = count * math.prod(shape), free_memory(torch.device("cpu"))
    if free is not None and needed > free:
        raise MemoryError(
            f"sample: events must fit into the memory, {free / 2**30:.3g} GiB free, got {count} of shape "
            f"{tuple(shape)}, {needed / 2**30:.3g} GiB at a byte for each variable"
        )


class Part:
    """The two files beside ``out`` while it is being drawn."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.state, self.preview = (out.with_name(f"{out.name}.part{end}") for end in (".safetensors", ".png"))
        self.checkpoint = Checkpoint(self.state, _SECONDS, kind="drawing")

    @property
    def goes_on(self) -> str:
        return f"ar-fast sample --resume {self.out} goes on from here"

    def check_new(self) -> None:
        if self.state.exists():
            raise ValueError(
                f"--out: {self.out} was being drawn, and ar-fast sample --resume {self.out} goes on; to begin anew "
                f"delete {self.state}"
            )

    def read(self) -> tuple[dict[str, torch.Tensor], Wanted] | None:
        """The state and what was wanted; None if there is none."""
        stored = self.checkpoint.load()
        if stored is None:
            return None
        try:
            return stored[0], Wanted.read(stored[1])
        except ValueError as error:
            raise ValueError(f"--resume: {self.state} must be of a drawing that was interrupted: {error}") from None

    def write(self, sampling: Sampling, wanted: Wanted, values: Values) -> None:
        begun = time.monotonic()
        self.checkpoint.write(sampling.state_dict(), asdict(wanted))
        if outputs.is_image(values):
            outputs.write_preview(self.preview, sampling.values, sampling.drawn, values)
        self.checkpoint.seconds = max(_SECONDS, _SHARE * (time.monotonic() - begun))

    def remove(self) -> None:
        outputs.remove(self.preview)
        # Last: while it is there, the drawing goes on.
        self.checkpoint.remove()


def drawn(model: Any, wanted: Wanted, values: Values, out: Path | None) -> torch.Tensor | None:
    """The events of this process; None if they are in the file ``out`` already, as those of ``to_file`` are."""
    writes = distributed.rank_and_size()[0] == 0
    count, seed, temperature = wanted.count, wanted.seed, wanted.temperature
    if isinstance(model, flows.MAF):
        if temperature != 1.0:
            raise ValueError(f"--temperature: a flow has none, got {temperature}")
        # Its noise comes from torch's generator, all at once.
        return model.sample(count if writes else 0, seed=seed)
    if out is not None and not isinstance(model, Ensemble) and distributed.rank_and_size()[1] == 1:
        sampling = drawn_together(model, count, seed=seed, temperature=temperature)
        if sampling is not None:
            to_file(sampling, wanted, values, Part(out))
            return None
    own = distributed.share(count)
    rows = model.sample(
        own.stop - own.start, seed=seed, first_index=own.start, temperature=temperature, progress=writes
    )
    return distributed.joined(rows, count)


def resume(out: Path) -> None:
    """Goes on with a drawing that was interrupted, to the same file that it would have become."""
    part = Part(out)
    stored = part.read()
    if stored is None:
        if out.is_file():
            click.echo(f"{out} is complete")
            return
        raise ValueError(f"--resume: must be a file that was being drawn, got {out}, and there is no {part.state}")
    state, wanted = stored
    model, values = wanted.open()
    outputs.check(out, outputs.endings(values))
    sampling = drawn_together(model, wanted.count, seed=wanted.seed, temperature=wanted.temperature)
    if sampling is None:
        raise ValueError(f"--resume: {part.state} must be of fewer events, got {wanted.count}")
    sampling.load_state_dict(state)
    to_file(sampling, wanted, values, part)


def to_file(sampling: Sampling, wanted: Wanted, values: Values, part: Part) -> None:
    """Draws what is left and writes the file; Ctrl-C and a request to end keep what is drawn."""
    with _kept(sampling, wanted, values, part):
        _draw(sampling, wanted, values, part)
        # Arrays are written from the bytes in which they are kept.
        events = sampling.values if isinstance(values, Numbers) else sampling.samples
        outputs.write_samples(part.out, events, values)
        part.remove()
    click.echo(f"written to {part.out}")


@contextlib.contextmanager
def _kept(sampling: Sampling, wanted: Wanted, values: Values, part: Part) -> Iterator[None]:
    """An error says how to go on, if that is possible."""
    try:
        yield
    except KeyboardInterrupt:
        part.write(sampling, wanted, values)
        raise KeyboardInterrupt(part.goes_on) from None
    except OSError as error:
        if not part.state.is_file():
            raise
        raise OSError(f"{error}; {part.goes_on}") from None


def _draw(sampling: Sampling, wanted: Wanted, values: Values, part: Part) -> None:
    checkpoint, variables = part.checkpoint, sampling.drawn.numel()
    checkpoint.skip()

    def stop() -> None:
        checkpoint.stop = True

    with (
        progress_bar(
            total=wanted.count * variables, initial=wanted.count * sampling.position, unit="variable", unit_scale=True
        ) as bar,
        runs.signals(stop),
    ):
        for count in sampling._steps():
            bar.update(count)
            if checkpoint.stop:
                break
            if checkpoint.due and not sampling.done:
                first = not part.state.exists()
                part.write(sampling, wanted, values)
                if first and outputs.is_image(values):
                    bar.write(f"what is drawn so far: {part.preview}", file=sys.stderr)
    if checkpoint.stop and not sampling.done:
        raise KeyboardInterrupt
