"""Loads the compiled ops and says which implementation runs.

Two binaries are stored beside this file: the ops library (``libar_fast_ops``: the ops and their gradients, without
Python) and ``_C`` (thin eager entry points to them). Where nothing was compiled, ``AR_FAST_BACKEND=reference`` runs the
plain-torch references of :mod:`ar_fast.reference` instead. It must be set explicitly, there or by ``AR_FAST_PURE=1``
when the package is installed, which a warning says at import; it is never chosen silently.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

_HERE = Path(__file__).parent
_OPS = _HERE / ("libar_fast_ops.dylib" if sys.platform == "darwin" else "libar_fast_ops.so")
_BACKENDS = ("compiled", "reference")


def _chosen_backend() -> str:
    backend = os.environ.get("AR_FAST_BACKEND")
    if backend is None and _read_record().get("pure"):
        warnings.warn(
            "ar_fast was installed without its compiled ops (AR_FAST_PURE=1): the plain-torch references run, with the "
            "same results, many times slower",
            stacklevel=2,
        )
        return "reference"
    backend = backend or "compiled"
    if backend not in _BACKENDS:
        raise ValueError(f"AR_FAST_BACKEND must be one of {', '.join(_BACKENDS)}, got {backend!r}")
    return backend


def _series(version: str) -> str:
    """2.13.0+cpu -> 2.13: the C++ interface is stable only within a minor version."""
    return ".".join(version.split(".")[:2])


def _read_record() -> dict[str, Any]:
    """What the build wrote beside the binaries; empty if nothing was compiled."""
    path = _HERE / "_build.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _not_compiled() -> str:
    """Says why there are no binaries beside this file, and how to get them."""
    for entry in sys.path:
        installed = Path(entry or ".").resolve() / "ar_fast"
        if installed != _HERE.resolve() and (installed / "_build.json").exists():
            return (
                f"ar_fast was imported from a source folder that was not compiled, {_HERE}, which hides the package "
                f"that is installed in {installed}: start Python in another folder (and take the source folder off "
                "PYTHONPATH), or compile in the source folder with `pip install --no-build-isolation -e .`"
            )
    return (
        "ar_fast was not compiled: run `pip install --no-build-isolation .` (or `-e .`) in its source folder, "
        "or set AR_FAST_BACKEND=reference to run the slow plain-torch references"
    )


def _load() -> tuple[Any, dict[str, Any]]:
    record = _read_record()
    if "torch" not in record:
        raise ImportError(_not_compiled())
    if _series(record["torch"]) != _series(torch.__version__):
        raise ImportError(
            f"ar_fast was built for torch {record['torch']}, but this is torch {torch.__version__}: install the former "
            f'with `pip install "torch=={_series(record["torch"])}.*"`, or build ar_fast again, in its source folder, '
            "with `pip install --no-build-isolation --force-reinstall --no-deps .`"
        )
    torch.ops.load_library(str(_OPS))
    try:
        from . import _C
    except ImportError as error:
        raise ImportError(
            f"ar_fast's compiled part does not load under torch {torch.__version__} (it was built for "
            f"{record['torch']}): {error}"
        ) from error
    if torch.backends.cpu.get_cpu_capability() == "AVX512" and "AVX512" not in record.get("instruction_sets", "AVX512"):
        warnings.warn(
            "ar_fast was compiled on a machine without AVX-512 and runs on AVX2 here: compile it on this machine, or "
            "with AR_FAST_CPU=all",
            stacklevel=2,
        )
    return _C, record


backend = _chosen_backend()
#: Why the references run, where they do.
because = "with AR_FAST_PURE=1" if _read_record().get("pure") else "with AR_FAST_BACKEND=reference"
_C, record = _load() if backend == "compiled" else (None, {})
_has_ops = _C is not None
if not _has_ops and _OPS.exists() and _series(_read_record().get("torch", "")) == _series(torch.__version__):
    # The reference backend runs no compiled op, but it checks its calls with the ops that were compiled.
    torch.ops.load_library(str(_OPS))
    _has_ops = True
_namespace = "ar_fast"
_eager_entry_points = True
_replaced: Mapping[str, Callable[..., Any]] | None = None


def op(name: str) -> Any | None:
    """The dispatcher's op ``name``; None if nothing was compiled for this torch."""
    return getattr(getattr(torch.ops, _namespace), name).default if _has_ops else None


def entry_point(name: str) -> Callable[..., Any] | None:
    """The compiled op ``name``, taking its schema's arguments by position; None under the reference backend.

    In eager mode this is the pybind11 function; while compiling it is ``torch.ops.ar_fast.name``, which does not break
    the graph.
    """
    if _replaced is not None:
        return _replaced[name]
    if _C is None:
        return None
    if _eager_entry_points and not torch.compiler.is_compiling():
        return getattr(_C, name)
    return getattr(getattr(torch.ops, _namespace), name)


def runs_cuda(device: torch.device) -> bool:
    """Whether ops on this device run the CUDA kernels: on a GPU, or where the tests emulate one."""
    return device.type == "cuda" or not _eager_entry_points


@contextlib.contextmanager
def replaced(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Within the block every op is the function of its name, which takes its schema's arguments."""
    global _replaced
    before, _replaced = _replaced, functions
    try:
        yield
    finally:
        _replaced = before


@contextlib.contextmanager
def use(namespace: str) -> Iterator[None]:
    """Within the block every op comes from ``torch.ops.<namespace>`` (the tests run the emulated CUDA ops this way)."""
    global _namespace, _eager_entry_points
    before = _namespace, _eager_entry_points
    _namespace, _eager_entry_points = namespace, namespace == "ar_fast"
    try:
        yield
    finally:
        _namespace, _eager_entry_points = before
