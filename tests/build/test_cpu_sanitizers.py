"""The CPU ops and their kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in processes of their own.

What runs under them: every model with its gradients and its samples, masked layers in every type and on every path
(bench.smoke), small calls of every op and model, and random ones.
"""

import re
import subprocess

import installed
import pytest

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(installed.COMPILER is None, reason="needs g++, whose sanitizers the library is linked with"),
]

UNIT = installed.ROOT / "tests" / "unit"
CASES = "600"  # random calls of all properties together


def run(*arguments: str) -> subprocess.CompletedProcess:
    # The baseline's kernels have the same sources; the others take three times as long to compile.
    return installed.python(
        installed.package("sanitized-address", "-DAR_FAST_SANITIZER=address", "-DAR_FAST_CPU=baseline"),
        *arguments,
        preload=("libasan.so", "libubsan.so", "libstdc++.so"),
        ASAN_OPTIONS="detect_leaks=0",  # Python and torch keep memory to the end
        UBSAN_OPTIONS="print_stacktrace=1",
        ATEN_CPU_CAPABILITY="default",
        OMP_NUM_THREADS="2",
    )


def assert_clean(done: subprocess.CompletedProcess) -> None:
    said = done.stdout + done.stderr
    found = re.search("runtime error:|AddressSanitizer", said)
    if found or done.returncode != 0:
        start = max(0, found.start() - 200) if found else len(said) - 8000
        pytest.fail(said[max(0, start) :][:8000])


# A tensor of 80 numbers over memory of 40, or from its second byte on.
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


@pytest.mark.parametrize(
    ("memory", "offset", "said"),
    [(160, 0, "AddressSanitizer: heap-buffer-overflow"), (400, 1, "runtime error: load of misaligned address")],
)
def test_errors_of_a_kernel_are_seen(memory, offset, said):
    done = run("-c", OUTSIDE.format(bytes=memory, offset=offset))
    assert done.returncode != 0
    assert "no error" not in done.stdout
    assert said in done.stderr, done.stderr
    assert "ar_fast::DEFAULT" in done.stderr, done.stderr


def test_models_and_layers():
    assert_clean(run("-m", "bench.smoke", "--device", "cpu", "--alone"))


def test_small_calls_of_every_op_and_model():
    assert_clean(run(str(installed.ROOT / "tests" / "small_calls.py")))


def run_tests(*arguments: str) -> None:
    # Without capturing: the sanitizers end the process at once, and what they said would be lost.
    options = [
        "-q",
        "-x",
        "-s",
        "-p",
        "no:cacheprovider",
        "--device",
        "cpu",
        "-c",
        str(installed.ROOT / "pyproject.toml"),
    ]
    assert_clean(run("-m", "pytest", *options, *arguments))


def test_tensors_without_elements():
    # Their pointer is null.
    run_tests(f"{UNIT / 'test_masked_linear.py'}::test_no_features", str(UNIT / "test_empty_batches.py"))


def test_random_calls(monkeypatch):
    # The same calls every time: that results are equal to the references is not asked here.
    monkeypatch.setenv("AR_FAST_CASES", CASES)
    monkeypatch.setenv("AR_FAST_TEST_SEED", "296040520")
    run_tests(str(UNIT / "test_properties.py"), str(UNIT / "test_model_properties.py"))
