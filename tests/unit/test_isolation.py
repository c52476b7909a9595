"""A call depends on its arguments alone and leaves nothing behind: every op and every model, by their lists.

Equal bits for repeated calls, equal draws for any number of threads, from several Python threads at once and in a
forked child; and no generator, number of threads, default or floating-point environment is touched.
"""

import ctypes
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import armlp_cases
import deep_nade_op_cases
import inverse_adjoint_cases
import masked_cases
import masked_mlp_flow_cases
import mlp_cases
import nade_cases
import offset_nade_op_cases
import pytest
import rnn_cases
import structure_cases
import torch

from ar_fast import _fallback, _library, functional
from ar_fast.flows import MAF

FIXED_SEED = 0
pytestmark = pytest.mark.skipif(_library.backend == "reference", reason="about the compiled ops")
# Large enough for several threads, and rows that do not divide by them.
B, D, H = 67, 45, 70


def of_nade(op):
    case = nade_cases.nade_case(B, D, H)
    arguments = [getattr(case, name) for name in ("x", "in_weight", "in_bias", "out_weight", "out_bias")]
    leaves = [tensor.requires_grad_() for tensor in arguments[1:]]
    return lambda: with_gradients(getattr(functional, op)(*arguments, order=case.order), leaves)


def with_gradients(results, leaves):
    results = list(results) if isinstance(results, tuple) else [results]
    return results + list(torch.autograd.grad(sum(result.double().sum() for result in results), leaves))


def nade_sample():
    case = nade_cases.nade_case(B, D, H)
    state = case.in_bias.expand(B, -1)
    return lambda: functional.nade_sample(
        state, case.in_weight, case.out_weight, case.out_bias, order=case.order, seed=5
    )


def head_log_prob():
    case = nade_cases.nade_case(500, D, 3, head="gaussian_mixture", parameters=4)
    parameters = torch.randn(500, len(case.out_bias)).requires_grad_()
    x = case.x.requires_grad_()
    return lambda: with_gradients(functional.head_log_prob(parameters, x, head="gaussian_mixture"), [parameters, x])


def masked_linear():
    case = masked_cases.masked_case(B, 300, 200)
    leaves = [case.input.requires_grad_(), case.weight.requires_grad_(), case.bias.requires_grad_()]
    return lambda: with_gradients(functional.masked_linear(*leaves[:2], case.mask, leaves[2]), leaves)


def masked_linear_grad_input():
    case = masked_cases.masked_case(B, 300, 200)
    grad = torch.randn(B, 200)
    return lambda: [functional.masked_linear_grad_input(grad, case.weight, case.mask)]


def masked_mlp_sample():
    case = mlp_cases.mlp_case(D, [H, H])
    return lambda: mlp_cases.sample(case, B)


def masked_mlp_flow():
    context, weights, masks, biases, options = masked_mlp_flow_cases.case("plain", "affine_soft_clip", D)
    x, _ = masked_mlp_flow_cases.inputs(B, D, context)
    leaves = [x.requires_grad_(), *(weight.requires_grad_() for weight in weights)]
    return lambda: with_gradients(functional.masked_mlp_flow(x, weights, masks, biases, **options), leaves)


def inverse_adjoint():
    arguments = inverse_adjoint_cases.case("plain", B, 19, 2)
    return lambda: [functional.inverse_adjoint(*arguments)]


def univariate_transform():
    x, parameters = torch.randn(B, D).requires_grad_(), torch.randn(B, 2 * D).requires_grad_()
    return lambda: with_gradients(
        functional.univariate_transform(x, parameters, "affine_soft_clip", (7.0,)), [x, parameters]
    )


def armlp_sample():
    case = armlp_cases.armlp_case(D, 9)
    state = torch.zeros(B, D)
    return lambda: functional.armlp_sample(state, **case.weights, order=case.order, seed=5)


def deep_nade_sample():
    case = deep_nade_op_cases.deep_case(D, (H, H))
    state = case.bias.expand(B, -1)
    return lambda: functional.deep_nade_sample(state, **case.tensors, **case.structure, seed=5)


def offset_nade_sample():
    arguments = offset_nade_op_cases.op_case(B, (5, 9, 1), hidden=H)
    return lambda: functional.offset_nade_sample(**arguments)


def rnn_sample():
    arguments = rnn_cases.op_case(B, D, H)
    return lambda: [result for result in rnn_cases.sample(arguments) if result is not None]


#: Each op, as a function of nothing. fvsbn_sample is for CUDA alone.
OPS = {
    "nade": lambda: of_nade("nade"),
    "nade_log_prob": lambda: of_nade("nade_log_prob"),
    **{
        own.__name__: own
        for own in (
            nade_sample, head_log_prob, masked_linear, masked_linear_grad_input, masked_mlp_sample, masked_mlp_flow,
            inverse_adjoint, univariate_transform, armlp_sample, deep_nade_sample, offset_nade_sample, rnn_sample,
        )
    },
}  # fmt: skip


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


LONG = {
    "nade": lambda: nade_cases.nade_case(512, 600, 256),
    "masked_linear": lambda: masked_cases.masked_case(2048, 2048, 2048),
}


@pytest.mark.parametrize("name", LONG)
def test_the_gil_is_released(name):
    """Another Python thread gets on while an op runs."""
    case = LONG[name]()
    call = {
        "nade": lambda: functional.nade_sample(
            case.in_bias.expand(512, -1), case.in_weight, case.out_weight, case.out_bias, order=case.order, seed=1
        ),
        "masked_linear": lambda: functional.masked_linear(case.input, case.weight, case.mask, case.bias),
    }[name]
    torch.set_num_threads(1)
    stamps, done = [], threading.Event()

    def count():
        while not done.is_set():
            stamps.append(time.perf_counter())
            time.sleep(0.0002)

    other = threading.Thread(target=count)
    other.start()
    try:
        inside = 0
        for _ in range(20):
            start = time.perf_counter()
            call()
            stop = time.perf_counter()
            fifth = (stop - start) / 5
            inside += sum(start + fifth < stamp < stop - fifth for stamp in stamps)
            if inside > 3:
                break
    finally:
        done.set()
        other.join()
    assert inside > 3, "no Python ran in the middle of a call"
