"""Where a training or a drawing stands, in one safetensors file that is always whole. Nothing is unpickled."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = ["Checkpoint"]

_FORMATS = {"training": "ar_fast.checkpoint 1", "drawing": "ar_fast.drawing 1"}


class Checkpoint:
    """The file of a training's state, or of a drawing's, and how often it is written.

    A new state is written beside the old one, reaches the disk, and takes its place in one step: whenever the process
    ends, the file holds the old state or the new one.

    Args:
        path: the file.
        seconds: how often it is written at most; 0 is after every step.
        kind: "training" or "drawing"; a file of the other kind is refused.

    Attributes:
        stop: set it, as from a signal's handler, and the training writes its state after the step under way and raises
            KeyboardInterrupt.

    Example:
        >>> from ar_fast.models import NADE
        >>> sampling = NADE((2, 3), hidden_features=4).sampling(seed=0)
        >>> checkpoint = Checkpoint("drawing.safetensors", kind="drawing")
        >>> while not sampling.done:
        ...     sampling.advance(4)
        ...     if checkpoint.due:
        ...         checkpoint.write(sampling.state_dict(), {"model": "digits"})
    """

    def __init__(self, path: str | Path, seconds: float = 30.0, kind: str = "training") -> None:
        if not seconds >= 0:
            raise ValueError(f"Checkpoint: seconds must be >= 0, got {seconds!r}")
        if kind not in _FORMATS:
            raise ValueError(f"Checkpoint: kind must be one of {', '.join(_FORMATS)}, got {kind!r}")
        self.kind, self._format = kind, _FORMATS[kind]
        self.path, self.seconds, self.stop = Path(path), seconds, False
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to write, or stop is set."""
        return self.stop or time.monotonic() - self._last >= self.seconds

    @property
    def _beside(self) -> Path:
        return self.path.with_name(self.path.name + ".tmp")

    def write(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Writes a state.

        Raises:
            OSError: if it cannot be written; the old state stays.
        """
        beside = self._beside
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            # Not save_file: it writes to a file of a random name, which stays where the process is killed.
            content = save(whole, {"format": self._format, "values": json.dumps(values)})
            with open(beside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise OSError(f"checkpoint: {self.path} could not be written: {error}") from None
        os.replace(beside, self.path)
        self.skip()

    def skip(self) -> None:
        """Begins the time until the next state anew."""
        self._last = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors, on the CPU, and the values; None if there is no file.

        Raises:
            ValueError: if the file is none that this class wrote.
        """
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != self._format:
                    raise ValueError(f"its format is {metadata.get('format')!r}, not {self._format!r}")
                return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["values"])  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise ValueError(f"checkpoint: {self.path} must be the state of a {self.kind}, got: {error}") from None

    def remove(self) -> None:
        """Deletes the file, if there is one."""
        self.path.unlink(missing_ok=True)
        self._beside.unlink(missing_ok=True)
