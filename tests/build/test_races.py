"""The CUDA kernels under ThreadSanitizer and the emulation: only barriers, warp operations and atomics order threads.

The threads of a kernel are fibers, which never run at the same time; the sanitizer is told that they are threads whose
switches order nothing, so that it reports what no barrier orders, in whichever order they ran.
"""

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import emulated
import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "csrc" / "kernels" / "cuda"

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs g++, whose ThreadSanitizer the kernels use"
    ),
]

# A case that runs a kernel, its source, and a function in it: without the n-th barrier of that function, counted from
# zero, threads race.
# Not reported are the first barrier of nade_scan_kernel, before its tiles are overwritten, and a barrier that directly
# follows another, as rnn.cu's before an arrival.
BARRIERS = [
    ("nade_forward", "nade_forward.cu", "nade_scan_kernel", 1),
    ("nade_forward", "nade_forward.cu", "nade_head_kernel", 1),
    ("nade_backward", "nade_backward.cu", "nade_local_kernel", 0),
    ("nade_backward", "nade_backward.cu", "sum_over_warps", 0),
    ("nade_backward", "nade_backward.cu", "sum_over_warps", 1),
    ("nade_backward", "nade_backward.cu", "add_biases", 0),
    ("nade_sample_many_warps", "nade_sample.cu", "nade_sample_kernel", 0),
    ("nade_sample_categories", "nade_sample_general.cu", "nade_sample_general_kernel", 1),
    ("armlp", "armlp.cu", "hidden_units", 0),
    ("fvsbn", "fvsbn.cu", "draw_bernoulli", 0),
    ("offset_nade", "offset_nade.cu", "neighbourhood", 0),
    ("offset_nade", "offset_nade.cu", "layer", 0),
    ("offset_nade", "offset_nade.cu", "layer", 1),
    ("masked_linear_rows", "masked_linear_rows.cu", "masked_linear_grad_input_rows_kernel", 0),
    ("masked_linear_tiles_float32", "masked_linear_tiles.h", "make_tile", 0),
    ("masked_linear_wide_tiles", "masked_linear_tiles.h", "make_tile", 0),
    ("masked_mlp_blocks", "masked_mlp_sums.cu", "sum_tile", 0),
    ("masked_mlp_blocks", "masked_mlp_sums.cu", "sum_tile", 1),
    ("masked_mlp_blocks_many_warps", "masked_mlp.cu", "join", 0),
    ("masked_mlp_blocks", "masked_mlp.cu", "masked_mlp_sample_kernel", 0),
    ("masked_mlp_blocks", "masked_mlp.cu", "masked_mlp_sample_kernel", 2),
    ("rnn_grid", "rnn.cu", "units", 0),
    ("rnn_grid", "rnn.cu", "draw", 0),
    ("rnn_matrix", "rnn_matrix.cu", "sums_of", 0),
    ("rnn_matrix", "rnn_matrix.cu", "sums_of", 1),
]


@functools.cache
def executable() -> Path:
    return emulated.built("ar_fast_races")


def run(*arguments: str) -> subprocess.CompletedProcess:
    options = "exitcode=66 halt_on_error=1"
    return subprocess.run(
        [executable(), *arguments], capture_output=True, text=True, env={**os.environ, "TSAN_OPTIONS": options}
    )


def cases() -> list[str]:
    source = (ROOT / "csrc" / "testing" / "races" / "races.cpp").read_text()
    return re.findall(r'^    \{"(\w+)", ', source, re.MULTILINE)


def barrier(file: str, function: str, index: int) -> int:
    """The line of the index-th barrier after the definition of a function."""
    lines = (KERNELS / file).read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if re.search(rf"\b{function}\(", line) and not line.endswith(";"))
    return [i + 1 for i, line in enumerate(lines) if i > first and "__syncthreads();" in line][index]


@functools.cache
def done_in_whole(case: str) -> subprocess.CompletedProcess:
    """A case with all of its barriers."""
    return run(case)


@pytest.mark.parametrize("case", cases())
def test_no_kernel_races(case):
    done = done_in_whole(case)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


def test_every_kernel_has_a_case():
    sources = "".join(path.read_text() for path in KERNELS.glob("*.*"))
    named = set(re.findall(r'"((?:nade|head|bernoulli|masked|armlp|fvsbn|offset|rnn)_\w+)"', sources))
    assert len(named) > 20
    ran = {kernel for case in cases() for kernel in done_in_whole(case).stdout.partition(":")[2].split()}
    assert ran == named


@pytest.mark.parametrize(("case", "file", "function", "index"), BARRIERS)
def test_a_barrier_less_is_reported(case, file, function, index):
    done = run(case, file, str(barrier(file, function, index)))
    assert done.returncode == 66, done.stdout[-2000:] + done.stderr[-2000:]
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    assert file in done.stderr
