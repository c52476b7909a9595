"""Devices, instruction sets, seeds, and which tests are of the fast suite and which of the full one only.

`make test` runs the fast suite, `make test-full` everything (`--full`). A test is of the full suite only where it has
the marker `full`; where it has the marker `heavy` (whole models, torch's own checks of an op) and runs under the
emulation; and where it repeats the emulated kernels in a further order of threads. The fast suite's order is random,
drawn from AR_FAST_TEST_SEED.
"""

import contextlib
import faulthandler
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import emulated
import on_cuda
import pytest
import torch

from ar_fast import _fallback, _library

DEVICES = ("cpu", "emulated", "cuda")
STATISTICS = Path(__file__).parent / "statistics"
# In the environment, so that the workers of pytest-xdist have the seed of the process that started them.
SEED = int(os.environ.setdefault("AR_FAST_TEST_SEED", str(random.SystemRandom().randrange(2**31))))


def pytest_addoption(parser) -> None:
    parser.addoption("--full", action="store_true", help="also the tests that only `make test-full` runs")
    parser.addoption(
        "--device", action="append", choices=DEVICES,
        help="run the tests of ops and models on this device only; may be repeated (default: all there are)",
    )  # fmt: skip
    parser.addoption(
        "--test-seconds", type=float,
        help="end the process, with a traceback, where a test takes longer: a kernel that hangs cannot be interrupted",
    )  # fmt: skip


def pytest_configure(config) -> None:
    config.addinivalue_line("markers", "full: of the full suite only")
    config.addinivalue_line("markers", "heavy: under the emulation in the full suite only")
    if getattr(config.option, "numprocesses", None):
        # Before the workers start. Two workers with one thread each are faster than with two.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        if "emulated" in devices(config) and not config.option.collectonly:
            emulated.library_path()


def pytest_terminal_summary(terminalreporter) -> None:
    # At the end: with -q pytest prints no header.
    terminalreporter.write_line(
        f"AR_FAST_TEST_SEED={SEED} (set it to repeat a run's random inputs and its order of emulated threads)"
    )


def devices(config) -> list[str]:
    """The devices that exist here, of those that --device names; one that it names must exist."""
    missing = {}
    if not torch.cuda.is_available():
        missing["cuda"] = "there is no GPU here: torch.cuda.is_available() is False"
    elif _library.record.get("cuda") != "ON":
        missing["cuda"] = "ar_fast was built without CUDA: build it with AR_FAST_CUDA=1"
    chosen = config.getoption("--device")
    for name in chosen or ():
        if name in missing:
            raise pytest.UsageError(f"--device {name}: {missing[name]}")
    return [name for name in DEVICES if name not in missing and (chosen is None or name in chosen)]


def pytest_generate_tests(metafunc) -> None:
    if "device" in metafunc.fixturenames:
        names = devices(metafunc.config)
        # Statistics prove the mathematics, on the CPU and on a GPU; the emulation proves that kernels equal the
        # references.
        if STATISTICS in metafunc.definition.path.parents:
            names = [name for name in names if name != "emulated"]
        metafunc.parametrize("device", names, indirect=True)


def is_full(item) -> bool:
    """Whether a test is of the full suite only."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return (
        item.get_closest_marker("full") is not None
        or (item.get_closest_marker("heavy") is not None and parameters.get("device") == "emulated")
        or parameters.get("fiber_order", "random") not in ("random", on_cuda.ORDER)
    )


def pytest_collection_modifyitems(config, items) -> None:
    if not config.getoption("--full"):
        left_out = [item for item in items if is_full(item)]
        config.hook.pytest_deselected(items=left_out)
        kept = set(items) - set(left_out)
        items[:] = [item for item in items if item in kept]


def available_isas() -> list[str]:
    """The instruction sets that this machine (and ATEN_CPU_CAPABILITY) allows."""
    if _library._C is None:
        return []
    allowed = []
    for name in ("DEFAULT", "AVX2", "AVX512"):
        with contextlib.suppress(RuntimeError):
            _library._C.set_isa(name)
            allowed.append(name)
    _library._C.set_isa("auto")
    return allowed


@contextlib.contextmanager
def isa(name: str) -> Iterator[None]:
    """Runs the CPU kernels of one instruction set."""
    _library._C.set_isa(name)
    try:
        yield
    finally:
        _library._C.set_isa("auto")


@pytest.fixture
def device(request) -> Iterator[torch.device]:
    """Where tensors go; under "emulated" they stay on the CPU and every op is that of the emulated library."""
    if request.param == "emulated":
        with emulated.fiber_order("random"), _library.use("ar_fast_emulated"):
            yield torch.device("cpu")
    else:
        yield torch.device(request.param)


@pytest.fixture
def emulation(request) -> bool:
    """True where the emulated library runs: it is some hundred times slower, so sizes shrink."""
    callspec = getattr(request.node, "callspec", None)
    return callspec is not None and callspec.params.get("device") == "emulated"


@pytest.fixture
def ops(device):
    """torch.ops.<namespace> of the library under test, for opcheck and calls by schema."""
    return getattr(torch.ops, _library._namespace)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """A process that a test outlives or whose GPU is lost ends. Under pytest-xdist another worker takes its place, and
    the test is reported as the one that crashed it."""
    seconds = item.config.getoption("--test-seconds")
    if seconds:
        faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        result = yield
        if torch.cuda.is_initialized():
            synchronise(item.nodeid, torch.cuda.synchronize)
        return result
    finally:
        if seconds:
            faulthandler.cancel_dump_traceback_later()


def synchronise(test: str, wait: Callable[[], None]) -> None:
    """What a test's kernels have done wrong shows here, not in a later test; no later one can use the GPU then."""
    try:
        wait()
    except RuntimeError as error:
        print(f"\n{test}: the GPU is lost: {error}", file=sys.stderr, flush=True)
        os._exit(70)


@pytest.fixture(autouse=True)
def seed(request) -> None:
    """Inputs are fresh in every run, and the same ones again where the seed is set.

    A module that judges draws (equal to the reference's in other arithmetic, or by their statistics) has a FIXED_SEED:
    with fresh ones such a test would fail once in some thousand runs for no fault of the code.
    """
    torch.manual_seed(getattr(request.module, "FIXED_SEED", SEED))


@pytest.fixture(params=["compiled", "reference"])
def implementation(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setattr(_library, "entry_point", lambda name: None)
        monkeypatch.setattr(_fallback, "_said", {"with AR_FAST_BACKEND=reference"})
    elif _library.backend == "reference":
        pytest.skip("AR_FAST_BACKEND=reference: nothing compiled is to run")
