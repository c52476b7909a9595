"""Clang compiles the library without a warning, and what it compiles passes the tests on torch's own threads."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# requirements-libraries.txt has one.
PATH = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
CLANG = shutil.which("clang++", path=PATH)
# Of each kernel, forward, backward and sampling.
TESTS = ("nade", "nade_sample", "masked_linear", "masked_mlp", "offset_nade", "rnn", "heads", "univariate_transform")

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(CLANG is None, reason="there is no clang++"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the instruction sets are those of x86"),
]


def run(*command: str | Path, folder: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={**os.environ, "PATH": PATH, **environment}
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of a package that clang has compiled for all instruction sets; the build is kept in build/clang."""
    build, folder = ROOT / "build" / "clang", tmp_path_factory.mktemp("clang")
    shutil.copytree(
        ROOT / "ar_fast", folder / "ar_fast", ignore=shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    )
    configured = run(
        "cmake", "-S", ROOT, "-B", build, "-G", "Ninja", f"-DCMAKE_CXX_COMPILER={CLANG}",
        f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_INSTALL_PREFIX={folder / 'ar_fast'}",
        "-DAR_FAST_CPU=all", "-DAR_FAST_CUDA=0",
    )  # fmt: skip
    said = run("cmake", "--build", build)
    assert "warning:" not in configured + said, said
    run("cmake", "--install", build)
    code = "import json, sys, torch; r = json.load(open(sys.argv[1])); r['torch'] = torch.__version__; "
    code += "json.dump(r, open(sys.argv[2], 'w'))"
    run(sys.executable, "-c", code, build / "summary.json", folder / "ar_fast" / "_build.json")
    return folder


def test_it_runs_on_the_threads_of_torch_and_no_others(installed):
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
    run(sys.executable, "-c", code, folder=installed, PYTHONPATH=str(installed), OMP_NUM_THREADS="2")


def test_the_kernels_pass_their_tests(installed):
    files = [ROOT / "tests" / "unit" / f"test_{name}.py" for name in TESTS]
    options = ["-q", "-x", "-p", "no:cacheprovider", "--device", "cpu", "-c", ROOT / "pyproject.toml"]
    code = (
        "import sys, pytest, ar_fast; assert 'Clang' in ar_fast.info()['compiler']; sys.exit(pytest.main(sys.argv[1:]))"
    )
    run(sys.executable, "-c", code, *options, *files, folder=installed, PYTHONPATH=str(installed))
