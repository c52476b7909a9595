"""The CUDA kernels and their emulation under AddressSanitizer, in a process of their own: it must be loaded first."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import emulated
import pytest

TESTS = Path(__file__).resolve().parents[1]
COMPILER = shutil.which(os.environ.get("CXX", "g++"))

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(COMPILER is None, reason="needs g++, whose AddressSanitizer the library is linked with"),
]


def run(*arguments: str) -> subprocess.CompletedProcess:
    runtimes = [
        subprocess.check_output([COMPILER, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and torch keep memory to the end
        "AR_FAST_EMULATED_LIBRARY": str(emulated.library_path("address")),
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    }
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=TESTS, env=environment)


def test_it_sees_past_the_end_of_shared_memory():
    code = """
import ctypes, torch, emulated
out = torch.zeros(32)
emulated.load().ar_fast_test_past_the_end(ctypes.c_void_p(out.data_ptr()))
"""
    done = run("-c", code)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr, done.stderr
    assert "past_the_end_kernel" in done.stderr


@pytest.mark.parametrize(
    ("file", "selected"),
    [
        ("build/test_emulation.py", "test"),
        ("unit/test_nade_tiles.py", "forward and not activations"),
        ("unit/test_masked_tiles.py", "random"),
    ],
)
def test_kernels(file, selected):
    # Without conftest.py, which registers the markers, strict markers would stop it.
    options = ["-q", "-x", "-p", "no:cacheprovider", "--noconftest", "-o", "addopts=", "-W", "ignore"]
    done = run("-m", "pytest", *options, file, "-k", selected)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
