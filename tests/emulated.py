"""The emulated library: the CUDA sources compiled as plain C++ (csrc/testing), for machines without a GPU."""

import contextlib
import ctypes
import fcntl
import functools
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ORDERS = {"forward": 0, "reverse": 1, "random": 2}


def built(target: str) -> Path:
    """Builds a target of the emulation where it is out of date, and returns its path."""
    build = ROOT / "build" / "emulated"
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}",
        "-DAR_FAST_EMULATION=ON",
    ]  # fmt: skip
    compile_target = ["cmake", "--build", str(build), "-j", os.environ.get("MAX_JOBS", "2"), "--target", target]
    build.mkdir(parents=True, exist_ok=True)
    with (build / "lock").open("w") as lock:
        # Of pytest-xdist's workers one builds, and the others wait for it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, compile_target):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}")
    return build / target


@functools.cache
def library_path(sanitizer: str = "") -> Path:
    """Builds the library where it is out of date, and returns its path. With "address" it is under AddressSanitizer and
    UndefinedBehaviorSanitizer."""
    target = "ar_fast_emulated" + (f"_{sanitizer}" if sanitizer else "")
    return built(target).with_name(f"lib{target}.so")


@functools.cache
def load() -> ctypes.CDLL:
    """Loads torch.ops.ar_fast_emulated. AR_FAST_EMULATED_LIBRARY names a library built elsewhere (with a sanitizer)."""
    import torch

    path = os.environ.get("AR_FAST_EMULATED_LIBRARY") or str(library_path())
    torch.ops.load_library(path)
    library = ctypes.CDLL(path)
    library.ar_fast_emulation_set_order.argtypes = [ctypes.c_int, ctypes.c_uint64]
    library.ar_fast_emulation_error.restype = ctypes.c_char_p
    library.ar_fast_test_explain_end.restype = ctypes.c_char_p
    return library


@contextlib.contextmanager
def fiber_order(order: str, seed: int | None = None):
    """Runs the threads of emulated kernels in `order`: "forward", "reverse" or "random".

    Random orders are drawn from `seed`; without one, from AR_FAST_TEST_SEED, which every run prints.
    """
    library = load()
    seed = int(os.environ.get("AR_FAST_TEST_SEED", "0")) if seed is None else seed
    library.ar_fast_emulation_set_order(ORDERS[order], seed)
    try:
        yield
    finally:
        library.ar_fast_emulation_set_order(ORDERS["forward"], 0)


@contextlib.contextmanager
def gpu(capability: int = 9, multiprocessors: int = 132):
    """The GPU that launchers of emulated kernels see: its major compute capability and how many multiprocessors."""
    library = load()
    library.ar_fast_emulation_set_device(capability, multiprocessors)
    try:
        yield
    finally:
        library.ar_fast_emulation_set_device(9, 132)


@contextlib.contextmanager
def drawn_in_blocks():
    """Emulated masked_mlp_sample draws every network in blocks of positions, which it does with large ones only."""
    library = load()
    library.ar_fast_test_set_blocked_inputs(ctypes.c_int64(0))
    try:
        yield
    finally:
        library.ar_fast_test_set_blocked_inputs(ctypes.c_int64(2048))


def explain(call) -> list[str]:
    """What the emulated ops of a call say that they run."""
    library = load()
    library.ar_fast_test_explain_begin()
    try:
        call()
    finally:
        lines = library.ar_fast_test_explain_end().decode().splitlines()
    return lines
