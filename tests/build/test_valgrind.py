"""Small calls of every op and model under valgrind's memcheck, which sees what the sanitizers do not: decisions and
addresses that depend on memory that nobody wrote.

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

CALLS = """
import op_cases, torch
from ar_fast import functional

def leaves(value):
    if isinstance(value, (list, tuple)):
        return [leaf for element in value for leaf in leaves(element)]
    return [value] if isinstance(value, torch.Tensor) else []

for name, arguments in op_cases.GOOD.items():
    if name == "fvsbn_sample":
        continue  # of CUDA alone
    arguments = arguments()
    has_gradient = "sample" not in name and name != "inverse_adjoint"
    differentiated = [t for t in leaves(list(arguments.values())) if t.is_floating_point() and has_gradient]
    for tensor in differentiated:
        tensor.requires_grad_()
    results = [t for t in leaves(getattr(functional, name)(**arguments)) if t.requires_grad]
    if results:
        torch.autograd.grad(sum(t.sum() for t in results), differentiated, allow_unused=True)
    print(name)
"""
MODELS = """
import model_cases, torch
for kind in model_cases.KINDS:
    model = model_cases.make_model(kind, (3, 3), dtype=torch.float32)
    x, log_prob = model.sample(3, seed=0, return_log_prob=True)
    model.log_prob(x).sum().backward()
    assert torch.allclose(model.log_prob(x), log_prob.float(), atol=1e-3)
    print(kind)
"""
# A tensor over memory that nobody wrote.
UNWRITTEN = """
import ctypes, torch, ar_fast
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
x = torch.frombuffer((ctypes.c_float * 8).from_address(library.malloc(32)), dtype=torch.float32).view(2, 4)
ar_fast.functional.head_log_prob(torch.zeros(2, 16), x, head="categorical")
"""


def errors(code: str, tmp_path) -> list[str]:
    """What valgrind says of each error of ours, and the functions of its stack."""
    report = tmp_path / "report.xml"
    done = installed.attempt(
        VALGRIND, "--quiet", "--error-limit=no", "--leak-check=no", "--xml=yes", f"--xml-file={report}",
        sys.executable, "-c", code, folder=installed.ROOT / "tests",
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
    found = errors(UNWRITTEN, tmp_path)
    assert any("uninitialised" in error and "ar_fast" in error for error in found), found


def test_clean(tmp_path):
    found = errors(CALLS + MODELS, tmp_path)
    assert not found, "\n".join(found[:10])
