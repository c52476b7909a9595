"""What runs: the build, the machine, and the kernel that a call takes."""

from __future__ import annotations

from typing import Any

import torch

from . import _library, functional
from ._version import __version__

__all__ = ["explain", "info"]


def info() -> dict[str, Any]:
    """What is running: backend, build, instruction set, threads, CUDA.

    >>> import ar_fast
    >>> ar_fast.info()["backend"]
    'compiled'
    """
    record = _library.record
    cuda = record.get("cuda") == "ON"
    return {
        "version": __version__,
        "backend": _library.backend,
        "torch": torch.__version__,
        "built_for_torch": record.get("torch"),
        "compiler": record.get("compiler"),
        "cpu_isa": _library._C.isa() if _library._C is not None else None,
        "cpu_instruction_sets": record.get("instruction_sets"),
        "cpu_threads": torch.get_num_threads(),
        "cuda_built": cuda,
        "cuda_architectures": record.get("cuda_architectures") if record.get("cuda") == "ON" else None,
        "nvcc": record.get("nvcc") or None,
        "cuda_available": torch.cuda.is_available(),
    }


def explain(op: str, *args: Any, **kwargs: Any) -> list[str]:
    """Runs ``ar_fast.functional.<op>(*args, **kwargs)`` once and reports what ran: kernel, instruction set, tiling.

    Args:
        op: the name of a function of :mod:`ar_fast.functional`.
        *args, **kwargs: its arguments.

    Returns:
        One line per kernel. A line also says when the reference backend ran.

    Raises:
        ValueError: if there is no such op.
    """
    if op not in functional.__all__:
        raise ValueError(f"explain: op must be one of {', '.join(functional.__all__)}, got {op!r}")
    if _library._C is None:
        return [f"{op}: the plain-torch reference in ar_fast.reference ({_library.because})"]
    _library._C.explain_begin()
    try:
        getattr(functional, op)(*args, **kwargs)
    finally:
        lines = _library._C.explain_end()
    return lines
