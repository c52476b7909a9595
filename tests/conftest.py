"""Every op and model test runs on each `device`: the CPU kernels, the CUDA kernels under the host emulation, a GPU."""

import contextlib
import os
import random
from collections.abc import Iterator

import emulated
import pytest
import torch

from ar_fast import _library


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


@pytest.fixture(params=["cpu", "emulated", "cuda"])
def device(request) -> Iterator[torch.device]:
    """Where tensors go; under "emulated" they stay on the CPU and every op is that of the emulated library."""
    if request.param == "emulated":
        emulated.load()
        with _library.use("ar_fast_emulated"):
            yield torch.device("cpu")
    elif request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("there is no GPU here: torch.cuda.is_available() is False")
        if not _library.info()["cuda_built"]:
            pytest.skip("built without CUDA (AR_FAST_CUDA=0, or no nvcc or a CPU torch at build time)")
        yield torch.device("cuda")
    else:
        yield torch.device("cpu")


@pytest.fixture
def emulation(request) -> bool:
    """True where the emulated library runs: it is some hundred times slower, so sizes shrink."""
    callspec = getattr(request.node, "callspec", None)
    return callspec is not None and callspec.params.get("device") == "emulated"


@pytest.fixture
def ops(device):
    """torch.ops.<namespace> of the library under test, for opcheck and calls by schema."""
    return getattr(torch.ops, _library._namespace)


SEED = int(os.environ.get("AR_FAST_TEST_SEED", random.SystemRandom().randrange(2**31)))


def pytest_report_header() -> str:
    return f"AR_FAST_TEST_SEED={SEED} (set it to repeat a run's random inputs)"


@pytest.fixture(autouse=True)
def seed(request) -> None:
    """Inputs are fresh in every run, and the same ones again where the seed is set.

    A module that judges draws (equal to the twin's in other arithmetic, or by their statistics) has a FIXED_SEED: with
    fresh ones such a test would fail once in some thousand runs for no fault of the code.
    """
    torch.manual_seed(getattr(request.module, "FIXED_SEED", SEED))
