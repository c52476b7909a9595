"""Clang compiles the library without a warning, and what it compiles passes the tests on torch's own threads."""

import platform
import sys
from pathlib import Path

import installed
import pytest

ROOT = installed.ROOT
# Of each kernel, forward, backward and sampling.
TESTS = ("nade", "nade_sample", "masked_linear", "masked_mlp", "offset_nade", "rnn", "heads", "univariate_transform")

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(installed.CLANG is None, reason="there is no clang++"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the instruction sets are those of x86"),
]


@pytest.fixture(scope="module")
def folder() -> Path:
    """The folder of a package that clang has compiled for all instruction sets."""
    return installed.package("clang", f"-DCMAKE_CXX_COMPILER={installed.CLANG}", "-DAR_FAST_CPU=all")


def test_it_runs_on_the_threads_of_torch_and_no_others(folder):
    code = """
import time, torch, ar_fast
assert "Clang" in ar_fast.info()["compiler"], ar_fast.info()
torch.set_num_threads(2)
weight, bias = torch.randn(784, 512), torch.zeros(512)
x = torch.rand(128, 784)
own, process = time.thread_time(), time.process_time()
for _ in range(5):
    ar_fast.functional.nade_log_prob(x, weight, bias, weight, torch.zeros(784))
own, process = time.thread_time() - own, time.process_time() - process
assert process > 1.5 * own, "the calling thread did all the work"

# The sampler of a recurrent model has threads that wait for each other; each number of threads draws the same.
model = ar_fast.models.CharRNN("ab", 512)
drawn = []
for threads in (1, 2, 3):
    torch.set_num_threads(threads)
    drawn.append(model.sample(3, 50, seed=0)[0])
assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
maps = {line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if "/" in line}
runtimes = [path for path in maps if any(name in path for name in ("libgomp", "libomp", "libiomp"))]
assert len(runtimes) == 1 and "/torch/lib/" in runtimes[0], runtimes
"""
    installed.run(sys.executable, "-c", code, folder=folder, PYTHONPATH=str(folder), OMP_NUM_THREADS="2")


def test_the_kernels_pass_their_tests(folder):
    files = [ROOT / "tests" / "unit" / f"test_{name}.py" for name in TESTS]
    options = ["-q", "-x", "-p", "no:cacheprovider", "--device", "cpu", "-c", ROOT / "pyproject.toml"]
    code = (
        "import sys, pytest, ar_fast; assert 'Clang' in ar_fast.info()['compiler']; sys.exit(pytest.main(sys.argv[1:]))"
    )
    installed.run(sys.executable, "-c", code, *options, *files, folder=folder, PYTHONPATH=str(folder))
