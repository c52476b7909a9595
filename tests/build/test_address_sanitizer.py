"""The CUDA kernels and their emulation under AddressSanitizer and UndefinedBehaviorSanitizer, in a process of their
own: these must be loaded first. Of the CPU kernels: test_cpu_sanitizers.py."""

import subprocess

import emulated
import installed
import pytest

TESTS = installed.ROOT / "tests"

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(installed.COMPILER is None, reason="needs g++, whose sanitizers the library is linked with"),
]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return installed.python(
        installed.ROOT,
        *arguments,
        preload=("libasan.so", "libubsan.so", "libstdc++.so"),
        ASAN_OPTIONS="detect_leaks=0",  # Python and torch keep memory to the end
        UBSAN_OPTIONS="print_stacktrace=1",
        AR_FAST_EMULATED_LIBRARY=str(emulated.library_path("address")),
    )


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


def test_it_sees_undefined_behaviour():
    code = """
import ctypes, torch, emulated
out = torch.zeros(65, dtype=torch.int32)
emulated.load().ar_fast_test_neighbour(ctypes.c_void_p(out.data_ptr() + 1), ctypes.c_bool(True))
"""
    done = run("-c", code)
    assert done.returncode != 0
    assert "runtime error: store to misaligned address" in done.stderr, done.stderr
    assert "neighbour_kernel" in done.stderr


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
    done = run("-m", "pytest", *options, str(TESTS / file), "-k", selected)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
