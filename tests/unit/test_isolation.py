"""A call depends on its arguments alone and leaves nothing behind: every op and every model, by their lists.

Equal bits for repeated calls, equal draws for any number of threads, from several Python threads at once and in a
forked child; and no generator, number of threads, default or floating-point environment is touched.
"""

import ctypes
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import structure_cases
import torch
from op_calls import OPS, B

from ar_fast import _fallback, _library
from ar_fast.flows import MAF

FIXED_SEED = 0
pytestmark = pytest.mark.skipif(_library.backend == "reference", reason="about the compiled ops")


def of_model(kind, head):
    model = structure_cases.make(kind, head, dtype=torch.float32)
    x, context = structure_cases.data(head, B, dtype=torch.float32)
    one = None if context is None else context[0]

    def call():
        samples, drawn = model.sample(B, one, seed=5, return_log_prob=True)
        log_prob = model.log_prob(x, context)
        used = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(log_prob.sum(), used, allow_unused=True)
        return [samples, drawn, log_prob.detach(), *(grad for grad in gradients if grad is not None)]

    return call


def of_flow():
    flow = MAF(7, 2, transforms=2, hidden_features=(20, 20))
    x, context = torch.randn(B, 7), torch.randn(B, 2)
    return lambda: [flow.log_prob(x, context).detach(), flow.sample(3, context, seed=5)]


CALLS = dict(OPS)
for parameter in structure_cases.CASES:
    kind, head = parameter.values
    CALLS[parameter.id] = lambda kind=kind, head=head: of_model(kind, head)
CALLS["MAF"] = of_flow


@pytest.fixture(params=CALLS)
def call(request):
    return CALLS[request.param]()


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def same(one, other):
    assert len(one) == len(other)
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_op_is_called():
    assert set(_fallback.REFERENCES) - {"fvsbn_sample"} == set(OPS)
    assert {kind for kind, _ in (parameter.values for parameter in structure_cases.CASES)} == set(
        structure_cases.MAKERS
    )


@pytest.mark.parametrize("count", [1, 2])
def test_repeated_calls_have_equal_bits(call, count):
    torch.set_num_threads(count)
    first = [result.clone() for result in call()]
    assert all(same(first, call()) for _ in range(3))


@pytest.mark.parametrize("name", [name for name in CALLS if name.endswith("_sample") or name not in OPS])
def test_draws_do_not_depend_on_the_number_of_threads(name):
    call = CALLS[name]()
    # A model's first result is its samples; an op's are all of its results.
    own = slice(None) if name in OPS else slice(0, 2)
    if name == "MAF":
        own = slice(1, 2)
    torch.set_num_threads(1)
    expected = call()[own]
    for count in (2, 3):
        torch.set_num_threads(count)
        assert same(expected, call()[own]), count


def test_several_python_threads_at_once(call):
    torch.set_num_threads(1)
    expected = call()
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda _: call(), range(8)):
            assert same(expected, results)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_of_one_thread(call):
    torch.set_num_threads(2)
    expected = call()
    torch.set_num_threads(1)
    in_one = [result.clone() for result in call()]
    torch.set_num_threads(2)
    assert len(in_one) == len(expected)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            code = 0 if same(in_one, call()) else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + 120
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(done[1]) == 0


def control_words():
    """The rounding modes of both units, and the other control bits of SSE (denormals, exception masks)."""
    buffer = ctypes.create_string_buffer(64)
    library = ctypes.CDLL(None)
    assert library.fegetenv(buffer) == 0
    # On x86-64 the last word of fenv_t is MXCSR, whose lowest six bits say what has happened.
    mxcsr = int.from_bytes(buffer.raw[28:32], "little") & ~0x3F if os.uname().machine == "x86_64" else None
    return library.fegetround(), mxcsr, 2.0**-1074 / 2.0**-1 > 0, (torch.tensor(1e-40) * 0.5).item() > 0


def global_state():
    return [
        torch.get_rng_state().tolist(), random.getstate(), torch.get_num_threads(), torch.get_num_interop_threads(),
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        torch.is_autocast_enabled("cpu"), torch.backends.mkldnn.enabled, os.getcwd(), dict(os.environ),
        control_words(),
    ]  # fmt: skip


def test_global_state_is_untouched(call):
    before = global_state()
    call()
    assert global_state() == before


def test_denormals_are_kept_or_flushed_as_the_caller_wants():
    """The environment that a caller has chosen is the one it finds afterwards."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        before = control_words()
        for make in OPS.values():
            make()()
            assert control_words() == before
    finally:
        torch.set_flush_denormal(False)
