"""No op keeps the interpreter's lock (the GIL) while its kernel runs, forward or backward: other Python threads get on.

An op's entry point releases the lock, and what it calls lies in a library that cannot take it. The other thread's steps
are seen in the middle of a call, and only a thread that never gets a turn fails a test, so that a busy machine changes
nothing.
"""

import ctypes
import itertools
import re
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from op_calls import OPS

from ar_fast import _fallback, _library

FIXED_SEED = 0
pytestmark = pytest.mark.skipif(_library.backend == "reference", reason="about the compiled ops")
#: How long a thread may wait for its turn on a busy machine.
SECONDS = 30.0
#: Rows for which a call takes some milliseconds.
ROWS = {
    "head_log_prob": 500,
    "inverse_adjoint": 20_000,
    "deep_nade_sample": 200,
    "offset_nade_sample": 400,
    "rnn_sample": 67,
    "univariate_transform": 20_000,
}
DIFFERENTIABLE = [
    "nade", "nade_log_prob", "head_log_prob", "masked_linear", "masked_linear_grad_input", "masked_mlp_flow",
    "univariate_transform",
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread_that_keeps_its_turn():
    """The lock changes hands only where a thread releases it, never because its turn is over."""
    interval, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(3600)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    sys.setswitchinterval(interval)


def others_get_on(call, silence=0.5):
    """Whether another Python thread makes steps all through a call: never this part of its time without one."""
    steps, done = [], threading.Event()

    def step():
        while not done.is_set():
            steps.append(time.perf_counter())
            time.sleep(0.0002)

    other = threading.Thread(target=step)
    other.start()
    # One such call will do: in any other the machine may have had no time for the thread.
    tries, deadline = 0, time.monotonic() + SECONDS
    try:
        while tries < 20 or time.monotonic() < deadline:
            tries += 1
            steps.clear()
            start = time.perf_counter()
            # torch releases the lock where it frees a tensor: the result lives on.
            results = call()
            stop = time.perf_counter()
            seen = [start, *(moment for moment in steps if start < moment < stop), stop]
            if max(after - before for before, after in itertools.pairwise(seen)) < silence * (stop - start):
                return True
            del results
    finally:
        done.set()
        other.join()
    return False


def entries(name):
    """Every call of a compiled entry point that the op's call makes, as functions of nothing."""
    found = []

    def recorded(own):
        entry = getattr(_library._C, own)

        def function(*arguments):
            found.append(lambda: entry(*arguments))
            return entry(*arguments)

        return function

    with _library.replaced({own: recorded(own) for own in _fallback.REFERENCES}):
        OPS[name](ROWS.get(name, 4000)).forward()
    return found


class Sleep(torch.autograd.Function):
    """Its backward sleeps in a function of C."""

    @staticmethod
    def forward(ctx, x, sleep):
        ctx.sleep = sleep
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.sleep(20_000)
        return grad, None


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "released"])
def test_that_a_lock_that_is_kept_is_seen(kept, monkeypatch):
    """ctypes keeps the lock during the functions of a PyDLL, and releases it for those of a CDLL."""
    library = ctypes.PyDLL(None) if kept else ctypes.CDLL(None)
    monkeypatch.setattr(f"{__name__}.SECONDS", 0 if kept else SECONDS)
    assert others_get_on(lambda: library.usleep(20_000)) != kept
    x = torch.ones(3, requires_grad=True)
    y = Sleep.apply(x, library.usleep).sum()
    assert others_get_on(lambda: torch.autograd.grad(y, x, retain_graph=True)) != kept


def test_the_ops_library_cannot_take_the_lock():
    """torch's engine computes gradients without it, by code of that library, which names no function of Python's."""
    names = re.compile(rb"\0_{0,2}(_?Py[A-Z]\w*_\w+|\w*pybind11\w*)(?=\0)")
    assert not names.findall(_library._OPS.read_bytes())
    assert names.findall(Path(_library._C.__file__).read_bytes())


@pytest.mark.parametrize("name", OPS)
def test_forward(name):
    """Between the two looks at the clock only the entry point could release the lock."""
    calls = entries(name)
    assert calls
    for call in calls:
        assert others_get_on(call)


def test_the_op_for_cuda_alone():
    """Its entry point is as the others: the lock is free while the dispatcher finds that there is no kernel."""
    state, weight = torch.zeros(2, 4), torch.ones(4, 4)

    def call():
        with pytest.raises(RuntimeError, match="must be on CUDA"):
            _library._C.fvsbn_sample(state, weight, *[None] * 5, 4, "bernoulli", 0, None, 1, 0, 0, 4, 1.0, "auto")

    # Too short a call for more than one step.
    assert others_get_on(call, silence=1.0)


def test_encoding():
    """Text is encoded an interval after the other, by no op."""
    encoder, intervals = _library._C.StreamEncoder(1), torch.tensor([[3, 5, 16]], dtype=torch.int32)
    intervals = intervals.expand(200_000, 3).contiguous()
    assert others_get_on(lambda: encoder.encode(0, intervals))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_backward(name):
    call = OPS[name](ROWS.get(name, 4000))
    results = call.results()
    ones = [torch.ones_like(result) for result in results]
    assert others_get_on(lambda: torch.autograd.grad(results, call.leaves, ones, retain_graph=True))


def test_every_op_is_called():
    assert set(_fallback.REFERENCES) - {"fvsbn_sample"} == set(OPS)
    assert [name for name in OPS if OPS[name](1).leaves] == DIFFERENTIABLE
