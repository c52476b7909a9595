"""The most that this machine does in a second: multiply-adds, sigmoids, bytes. It compiles peaks.cpp and runs it.

Each figure is the best of several turns, on one thread and on all that torch uses, with the instruction set that the
kernels run with.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

import ar_fast

# As CMakeLists.txt compiles the kernels.
FLAGS = {
    "DEFAULT": [],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
    "AVX512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma", "-mf16c"],
}
# Numbers in a thread's buffer that fits the second level of a core's cache with room to spare, and in all buffers that
# fit the cache that cores share, and that fit none. A machine with other caches has other names for them.
NEAR, SHARED, FAR = 32_768, 3_145_728, 33_554_432


@dataclass(frozen=True)
class Peaks:
    """In a second: multiply-adds and sigmoids of float32; bytes copied (read and written both count) between buffers in
    the near caches and in memory; bytes read from the near caches, the shared one and memory."""

    threads: int
    multiply_adds: float
    sigmoids: float
    near_copied: float
    far_copied: float
    near_read: float
    shared_read: float
    far_read: float

    def read(self, size: float) -> float:
        """Bytes read in a second where a call goes through `size` bytes, from the nearest memory that holds them."""
        if size <= self.threads * 8 * 4 * NEAR:
            return self.near_read
        return self.shared_read if size <= 2 * 4 * SHARED else self.far_read


def compiled(folder: Path) -> ctypes.CDLL:
    """peaks.cpp as a library, for the instruction set in use.

    Raises:
        RuntimeError: if there is no C++ compiler, or it does not compile it.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise RuntimeError("bench.peaks: a C++ compiler is needed to measure what the machine can do, found none")
    name = ar_fast.info()["cpu_isa"]
    library = folder / f"peaks-{name}.so"
    # FLAGS are x86's; elsewhere the kernels are at::vec's baseline.
    flags = ["-std=c++20", "-O3", "-fPIC", "-shared", "-w", *FLAGS[name], f"-DCPU_CAPABILITY={name}"]
    flags += [f"-DCPU_CAPABILITY_{name}", *(f"-isystem{path}" for path in include_paths())]
    torch_lib = Path(torch.__file__).parent / "lib"
    linked = [f"-L{torch_lib}", f"-Wl,-rpath,{torch_lib}", "-ltorch_cpu", "-lc10"]
    source = Path(__file__).with_name("peaks.cpp")
    done = subprocess.run(
        [compiler, *flags, str(source), "-o", str(library), *linked], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"bench.peaks: {compiler} does not compile {source.name}:\n{done.stderr[-2000:]}")
    loaded = ctypes.CDLL(str(library))
    loaded.width.restype = ctypes.c_int64
    return loaded


def _best(work: Callable[[int, int], None], amount: float, threads: int, seconds: float, rounds: int) -> float:
    """The most in a second, where one time is `amount`. work(thread, times) runs without the interpreter's lock."""
    with ThreadPoolExecutor(threads) as pool:

        def turn(times: int) -> float:
            start = time.perf_counter()
            list(pool.map(lambda thread: work(thread, times), range(threads)))
            return time.perf_counter() - start

        times = 1
        # The shortest of three: a turn that another program delayed says nothing about how much fits.
        while (once := min(turn(times) for _ in range(3))) < seconds / 4:
            times = max(2 * times, int(times * seconds / max(once, 1e-6) / 4))
        best = min(turn(times) for _ in range(rounds))
    return threads * times * amount / best


def measure(threads: int, *, seconds: float = 0.2, rounds: int = 7) -> Peaks:
    """The peaks of so many threads at once.

    Raises:
        RuntimeError: as :func:`compiled`.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(Path(folder))
        width = library.width()
        near = [torch.randn(2, NEAR) for _ in range(threads)]
        shared = [torch.randn(1, SHARED // threads) for _ in range(threads)]
        far = [torch.randn(2, FAR // threads) for _ in range(threads)]
        outs = [torch.zeros(width) for _ in range(threads)]

        def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
            return ctypes.c_void_p(tensor.data_ptr())

        def call(name: str, thread: int, *arguments: object) -> None:
            getattr(library, name)(
                *(ctypes.c_int64(own) if isinstance(own, int) else pointer(own) for own in arguments)
            )

        def best(work: Callable[[int, int], None], amount: float) -> float:
            return _best(work, amount, threads, seconds, rounds)

        def copied(buffers: list[torch.Tensor]) -> float:
            count = buffers[0].shape[1]
            return best(lambda t, n: call("copies", t, buffers[t][0], buffers[t][1], count, n), 8 * count)

        def read(buffers: list[torch.Tensor]) -> float:
            count = buffers[0][0].numel() // (4 * width) * 4 * width
            return best(lambda t, n: call("reads", t, buffers[t][0], count, n, outs[t]), 4 * count)

        return Peaks(
            threads,
            best(lambda t, n: call("multiply_adds", t, n, outs[t]), 12 * width),
            best(lambda t, n: call("sigmoids", t, near[t][0], NEAR, n, outs[t]), NEAR),
            copied(near),
            copied(far),
            read(near),
            read(shared),
            read(far),
        )
