"""Small calls of every op and model (small_calls.py) under valgrind's memcheck, which sees what the sanitizers do not:
decisions and addresses that depend on memory that nobody wrote.

Errors count that happen in our code or in what it calls of the C and C++ libraries: Python and torch are not clean.
valgrind does not know AVX-512, so the baseline's kernels run. Importing torch takes most of the time, which is a minute
and a half for each test.
"""

import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree

import installed
import pytest

from ar_fast import _library

# The C library, its mathematics, C++'s, and what valgrind puts in the place of their functions.
SYSTEM = re.compile(r".*/(libc|libm|libstdc\+\+|vgpreload_\w+)[.-][^/]*")
VALGRIND = shutil.which("valgrind")

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(VALGRIND is None, reason="there is no valgrind"),
    pytest.mark.skipif(_library.backend == "reference", reason="nothing compiled is to run"),
]

# A tensor over memory that nobody wrote.
UNWRITTEN = """
import ctypes, torch, ar_fast
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
x = torch.frombuffer((ctypes.c_float * 8).from_address(library.malloc(32)), dtype=torch.float32).view(2, 4)
ar_fast.functional.head_log_prob(torch.zeros(2, 16), x, head="categorical")
"""


def errors(tmp_path, *arguments: str) -> list[str]:
    """What valgrind says of each error of ours, and the functions of its stack."""
    report = tmp_path / "report.xml"
    done = installed.attempt(
        VALGRIND, "--quiet", "--error-limit=no", "--leak-check=no", "--xml=yes", f"--xml-file={report}",
        sys.executable, *arguments, folder=installed.ROOT / "tests",
        PYTHONMALLOC="malloc", ATEN_CPU_CAPABILITY="default", OMP_NUM_THREADS="1",
        PYTHONPATH=f"{installed.ROOT}:{installed.ROOT / 'tests'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    found = []
    for error in ElementTree.parse(report).getroot().iter("error"):
        # The first stack is where it happened; others are where the memory came from.
        frames = [(frame.findtext("obj") or "", frame.findtext("fn") or "?") for frame in error.find("stack")]
        caller = next((place for place, _ in frames if not SYSTEM.fullmatch(place)), "")
        if "/ar_fast/" in caller:
            stack = "\n  ".join(function for _, function in frames)
            found.append(f"{error.findtext('what')}\n  {stack}")
    return found


def test_unwritten_memory_is_seen(tmp_path):
    found = errors(tmp_path, "-c", UNWRITTEN)
    assert any("uninitialised" in error and "ar_fast" in error for error in found), found


def test_clean(tmp_path):
    found = errors(tmp_path, "small_calls.py")
    assert not found, "\n".join(found[:10])
