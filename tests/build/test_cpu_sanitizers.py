"""The CPU ops and their kernels of every instruction set under AddressSanitizer and UndefinedBehaviorSanitizer, in
processes of their own.

What runs under them: every model with its gradients and its samples, masked layers in every type and on every path
(bench.smoke), small calls of every op and model, and random ones.

Clang's sanitizers look at AVX-512's loads and stores under a mask too, and at offsets of null pointers, which gcc's do
not; and without optimisation clang compiles the kernels three times as fast.
"""

import re
import shutil
import subprocess

import installed
import pytest
import torch

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(installed.CLANG is None, reason="needs clang++, whose sanitizers the library is linked with"),
]

UNIT = installed.ROOT / "tests" / "unit"
CASES = "600"  # random calls of all properties together
ISAS = ("DEFAULT", "AVX2", "AVX512")
# Those that run here; of a processor of another kind there is one.
BEST = torch.backends.cpu.get_cpu_capability()
RUNNING = ISAS[: ISAS.index(BEST) + 1] if BEST in ISAS else ISAS[:1]

every_isa = pytest.mark.parametrize("isa", RUNNING)


def run(isa: str, *arguments: str) -> subprocess.CompletedProcess:
    options = f"-DCMAKE_CXX_COMPILER={installed.CLANG}", "-DAR_FAST_SANITIZER=address", "-DAR_FAST_CPU=all"
    return installed.python(
        installed.package("sanitized-clang", *options),
        *arguments,
        preload=("libclang_rt.asan.so", "libstdc++.so"),
        compiler=installed.CLANG,
        ASAN_OPTIONS="detect_leaks=0:allow_addr2line=1",  # Python and torch keep memory to the end
        ASAN_SYMBOLIZER_PATH=shutil.which("addr2line") or "",
        UBSAN_OPTIONS="print_stacktrace=1",
        ATEN_CPU_CAPABILITY=isa.lower(),
        OMP_NUM_THREADS="2",
    )


def assert_clean(done: subprocess.CompletedProcess) -> None:
    said = done.stdout + done.stderr
    found = re.search("runtime error:|AddressSanitizer", said)
    if found or done.returncode != 0:
        start = max(0, found.start() - 200) if found else len(said) - 8000
        pytest.fail(said[max(0, start) :][:8000])


# A tensor of 80 numbers over memory of 40, which AVX-512 loads under a mask, or from its second byte on.
OUTSIDE = """
import ctypes, torch, ar_fast
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
address = library.malloc({bytes})
ctypes.memset(address, 0, {bytes})
parameters = torch.frombuffer((ctypes.c_float * 80).from_address(address + {offset}), dtype=torch.float32).view(2, 40)
ar_fast.functional.head_log_prob(parameters, torch.zeros(2, 8), head="categorical")
print("no error")
"""


@every_isa
@pytest.mark.parametrize(
    ("memory", "offset", "said"),
    [(160, 0, "AddressSanitizer: heap-buffer-overflow"), (400, 1, "runtime error: load of misaligned address")],
)
def test_errors_of_a_kernel_are_seen(isa, memory, offset, said):
    done = run(isa, "-c", OUTSIDE.format(bytes=memory, offset=offset))
    assert done.returncode != 0
    assert "no error" not in done.stdout
    assert said in done.stderr, done.stderr
    assert f"ar_fast::{isa}" in done.stderr, done.stderr


@every_isa
def test_models_and_layers(isa):
    assert_clean(run(isa, "-m", "bench.smoke", "--device", "cpu", "--alone"))


@every_isa
def test_small_calls_of_every_op_and_model(isa):
    assert_clean(run(isa, str(installed.ROOT / "tests" / "small_calls.py")))


def run_tests(isa: str, *arguments: str) -> None:
    # Without capturing: the sanitizers end the process at once, and what they said would be lost.
    settings = str(installed.ROOT / "pyproject.toml")
    options = ["-q", "-x", "-s", "-p", "no:cacheprovider", "--device", "cpu", "-c", settings]
    assert_clean(run(isa, "-m", "pytest", *options, *arguments))


@every_isa
def test_tensors_without_elements(isa):
    # Their pointer is null.
    run_tests(isa, f"{UNIT / 'test_masked_linear.py'}::test_no_features", str(UNIT / "test_empty_batches.py"))


@every_isa
def test_random_calls(isa, monkeypatch):
    # The same calls every time: that results are equal to the references is not asked here.
    monkeypatch.setenv("AR_FAST_CASES", CASES)
    monkeypatch.setenv("AR_FAST_TEST_SEED", "296040520")
    run_tests(isa, str(UNIT / "test_properties.py"), str(UNIT / "test_model_properties.py"))
