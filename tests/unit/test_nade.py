"""The ops nade and nade_log_prob against their plain-torch reference in float64."""

from dataclasses import replace

import pytest
import torch
from conftest import available_isas, isa
from grids import pairs
from nade_cases import NadeCase, nade_case
from torch.nn import functional as F

from ar_fast import explain, functional, reference

SIZES = [(0, 3, 5), (1, 1, 1), (5, 7, 19), (3, 65, 33), (2, 19, 111), (67, 3, 7), (1, 33, 129), (2, 5, 989)]
TOLERANCE = {
    torch.float64: {"rtol": 1e-11, "atol": 1e-11},
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    # The same 16-bit weights go into the reference: only float32 arithmetic differs.
    torch.bfloat16: {"rtol": 2e-5, "atol": 2e-5},
    torch.float16: {"rtol": 2e-5, "atol": 2e-5},
}
VARIANTS = {
    "binary": {"x": "binary"},
    "dense": {"x": "dense"},
    "bool": {"x": "bool"},
    "integer": {"x": "integer", "ordered": False},
    "category": {"x": "category"},
    "ragged": {"x": "category", "ragged": True},
    "parameters": {"x": "dense", "parameters": 3},
    "scaled": {"x": "dense", "scaled": True, "activation": "relu"},
    "row_bias": {"x": "binary", "row_bias": True, "activation": "tanh"},
    "mixed": {"x": "mixed", "parameters": 4},
    "mixed, scaled": {"x": "mixed", "scaled": True, "activation": "relu"},
}


def nade(case: NadeCase, **options):
    return functional.nade(*case.arguments()[:5], **keywords(case), **options)


def keywords(case: NadeCase) -> dict:
    names = ("order", "in_offsets", "out_offsets", "activation_scale", "activation")
    return {name: getattr(case, name) for name in names}


def nade_log_prob(case: NadeCase, **options):
    head = {"head": case.head, "levels": case.levels, "head_kinds": case.head_kinds}
    return functional.nade_log_prob(*case.arguments()[:5], **keywords(case), **head, **options)


def expected(case: NadeCase) -> torch.Tensor:
    return reference.nade(*case.upcast().arguments())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_parameters_equal_the_reference(device, dtype, size):
    case = nade_case(*size, dtype=dtype, device=device)
    parameters = nade(case)
    assert parameters.dtype == reference.compute_dtype(dtype)
    torch.testing.assert_close(parameters.double(), expected(case), **TOLERANCE[dtype])


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_equals_the_reference(device, variant, activation):
    case = nade_case(4, 19, 37, device=device, **{**VARIANTS[variant], "activation": activation})
    torch.testing.assert_close(nade(case).double(), expected(case), **TOLERANCE[torch.float32])


@pytest.mark.parametrize("variant, dtype, name", pairs(VARIANTS, TOLERANCE, available_isas()), ids=str)
def test_every_instruction_set(name, dtype, variant):
    case = nade_case(5, 35, 111, dtype=dtype, **VARIANTS[variant])
    with isa(name):
        torch.testing.assert_close(nade(case).double(), expected(case), **TOLERANCE[dtype])
        assert_gradients(case, nade, lambda c: reference.nade(*c.arguments()), dtype)


def assert_gradients(case: NadeCase, function, plain, dtype: torch.dtype) -> None:
    """Gradients of a random functional of the output, against the reference's in float64."""
    case = case.map(lambda t: t.detach().clone())
    other = case.upcast().map(lambda t: t.detach().clone())
    for each in (case, other):
        for tensor in each.real_tensors().values():
            tensor.requires_grad_()
    result, want = function(case), plain(other)
    weights = torch.randn_like(want)
    names = list(case.real_tensors())
    got = torch.autograd.grad(result, list(case.real_tensors().values()), weights.to(result.dtype))
    # The reference does not use in_weight of the last variable, or x of it, at all.
    wanted = torch.autograd.grad(want, list(other.real_tensors().values()), weights, allow_unused=True)
    rounding = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(dtype)
    for name, a, b, tensor in zip(names, got, wanted, case.real_tensors().values(), strict=True):
        assert a.dtype == tensor.dtype and a.shape == tensor.shape, name
        b = torch.zeros_like(a, dtype=torch.float64) if b is None else b
        bounds = {"rtol": rounding, "atol": rounding} if rounding else TOLERANCE[dtype]
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a.double() / scale, b / scale, **bounds, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_the_reference(device, variant):
    case = nade_case(4, 37, 67, device=device, **VARIANTS[variant])
    assert_gradients(case, nade, lambda c: reference.nade(*c.arguments()), torch.float32)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_at_odd_sizes(device, size):
    case = nade_case(*size, device=device, dtype=torch.float64)
    assert_gradients(case, nade, lambda c: reference.nade(*c.arguments()), torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_16_bit_weights(device, dtype):
    case = nade_case(4, 9, 37, dtype=dtype, device=device)
    assert_gradients(case, nade, lambda c: reference.nade(*c.arguments()), dtype)


@pytest.mark.parametrize("name", available_isas())
@pytest.mark.parametrize("hidden", [1, 19, 67, 128])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("threads", [1, 4])
def test_few_rows(name, hidden, scaled, threads):
    """They give what a whole batch gives: up to rounding where they go straight through the weights, whose units may be
    shared out, and with its bits in segments of variables."""
    case = nade_case(8, 300, hidden, x="dense", scaled=scaled)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with isa(name):
            for function in (nade, lambda c: nade_log_prob(c, per_variable=True), nade_log_prob):
                whole = function(case)
                for size in (1, 2, 4):
                    parts = [replace(case, x=case.x[first : first + size]) for first in range(0, 8, size)]
                    found = torch.cat([function(part) for part in parts])
                    if scaled or size > 2:
                        assert torch.equal(found, whole)
                    else:
                        torch.testing.assert_close(found, whole)
            said = explain("nade", *case.arguments()[:5], **keywords(case))
            alone = explain("nade", case.x[:1], *case.arguments()[1:5], **keywords(case))
    finally:
        torch.set_num_threads(before)
    assert any("row groups" in line for line in said)
    shared = "row groups" if threads == 1 else "segments" if scaled else "parts of the units"
    assert any(shared in line for line in alone), alone


@pytest.mark.parametrize("per_variable", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_log_prob_equals_the_reference(device, size, per_variable):
    case = nade_case(*size, device=device, x="dense")
    got = nade_log_prob(case, per_variable=per_variable)
    want = reference.nade_log_prob(*case.upcast().log_prob_arguments(), per_variable)
    torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-5)
    assert_gradients(
        case,
        lambda c: nade_log_prob(c, per_variable=per_variable),
        lambda c: reference.nade_log_prob(*c.log_prob_arguments(), per_variable),
        torch.float32,
    )


@pytest.mark.parametrize("per_variable", [False, True])
@pytest.mark.parametrize("head", ["categorical", "gaussian_mixture", "logistic_mixture", "per_variable"])
def test_log_prob_of_every_head_equals_the_reference(device, head, per_variable):
    case = nade_case(5, 13, 37, device=device, head=head, parameters=3, dtype=torch.float64)
    torch.testing.assert_close(
        nade_log_prob(case, per_variable=per_variable),
        reference.nade_log_prob(*case.log_prob_arguments(), per_variable),
        **TOLERANCE[torch.float64],
    )
    assert_gradients(
        case,
        lambda c: nade_log_prob(c, per_variable=per_variable),
        lambda c: reference.nade_log_prob(*c.log_prob_arguments(), per_variable),
        torch.float64,
    )


def test_log_prob_is_stable_for_extreme_logits(device):
    case = nade_case(2, 4, 3, device=device, ordered=False)
    case.out_weight.zero_()
    case.out_bias.copy_(torch.tensor([1e4, -1e4, 200.0, -200.0]))
    case.x.copy_(torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]]))
    log_prob = nade_log_prob(case, per_variable=True)
    torch.testing.assert_close(log_prob[0], torch.zeros(4, device=device))
    torch.testing.assert_close(log_prob[1], torch.tensor([-1e4, -1e4, -200.0, -200.0], device=device))


def test_pre_activations_at_the_ends_of_the_range(device):
    ends = torch.tensor([[-float("inf"), -1e30, -104.0, -88.0, 0.0, 17.0, 100.0, 1e30, float("inf"), float("nan")]])
    case = NadeCase(torch.zeros(1, 1, device=device), torch.zeros(1, 1, device=device), torch.zeros(1, device=device),
                    torch.ones(1, 1, device=device), torch.zeros(1, device=device))  # fmt: skip
    for activation in ("sigmoid", "tanh", "relu"):
        for value in ends.flatten():
            case.in_bias, case.activation = value.reshape(1).to(device), activation
            want = reference.ACTIVATIONS[activation](value.double())
            torch.testing.assert_close(
                nade(case).double().flatten().cpu(), want.reshape(1), rtol=2e-6, atol=1e-37, equal_nan=True
            )


def test_a_nan_reaches_later_variables_only(device):
    case = nade_case(1, 6, 40, device=device, ordered=False)
    case.x[0, 3] = float("nan")
    parameters = nade(case)[0]
    assert parameters[:4].isfinite().all() and parameters[4:].isnan().all()


def test_strided_inputs(device):
    case = nade_case(6, 10, 24, device=device, x="dense")
    spread = case.map(lambda t: t.repeat_interleave(2, -1)[..., ::2])
    assert not spread.in_weight.is_contiguous()
    torch.testing.assert_close(nade(spread), nade(case), rtol=0, atol=0)


@pytest.mark.parametrize("variant", ["dense", "parameters", "scaled", "row_bias"])
def test_gradcheck(device, variant):
    case = nade_case(2, 4, 5, dtype=torch.float64, device=device, **{**VARIANTS[variant], "activation": "tanh"})
    names, tensors = zip(*case.real_tensors().items(), strict=True)

    def function(*values):
        return nade(NadeCase(**{**vars(case), **dict(zip(names, values, strict=True))}))

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in tensors])


def test_log_prob_gradcheck(device):
    case = nade_case(2, 4, 5, dtype=torch.float64, device=device, x="dense")
    names, tensors = zip(*case.real_tensors().items(), strict=True)

    def function(*values):
        return nade_log_prob(NadeCase(**{**vars(case), **dict(zip(names, values, strict=True))}))

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in tensors])


def test_a_second_derivative_raises(device):
    case = nade_case(2, 4, 5, device=device)
    case.in_weight.requires_grad_()
    for result in (nade(case).sum(), nade_log_prob(case).sum()):
        (grad,) = torch.autograd.grad(result, case.in_weight, create_graph=True)
        with pytest.raises(RuntimeError, match="cannot be differentiated again"):
            grad.sum().backward()


@pytest.mark.heavy
@pytest.mark.parametrize("variant", VARIANTS)
def test_opcheck(device, ops, variant):
    case = nade_case(3, 5, 6, device=device, **VARIANTS[variant])
    for tensor in case.real_tensors().values():
        tensor.requires_grad_()
    torch.library.opcheck(ops.nade.default, case.arguments())
    if case.out_weight.shape[0] == case.x.shape[1]:
        torch.library.opcheck(ops.nade_log_prob.default, case.log_prob_arguments())


def test_torch_compile(device):
    case = nade_case(3, 9, 11, device=device)
    leaves = [t.requires_grad_() for n, t in case.real_tensors().items() if n != "x"]
    compiled = torch.compile(
        lambda c, x: nade_log_prob(NadeCase(**{**vars(c), "x": x})), fullgraph=True, backend="aot_eager"
    )
    for batch in (3, 4, 7):
        x = (torch.rand(batch, 9, device=device) < 0.5).float()
        eager = nade_log_prob(NadeCase(**{**vars(case), "x": x}))
        traced = compiled(case, x)
        torch.testing.assert_close(traced, eager)
        for a, b in zip(
            torch.autograd.grad(traced.sum(), leaves), torch.autograd.grad(eager.sum(), leaves), strict=True
        ):
            torch.testing.assert_close(a, b)


def test_autocast_keeps_16_bit_storage_and_float32_results(device):
    case = nade_case(3, 9, 11, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert nade(case).dtype == torch.float32
        mixed = NadeCase(**{**vars(case), "in_bias": case.in_bias.bfloat16()})
        torch.testing.assert_close(nade(mixed), nade(mixed.map(lambda t: t.float() if t.is_floating_point() else t)))
        low = case.map(lambda t: t.bfloat16() if t.is_floating_point() else t)
        assert nade_log_prob(low).dtype == torch.float32


def test_gradients_are_bitwise_equal_for_any_thread_count():
    case = nade_case(37, 65, 300)
    leaves = [t.requires_grad_() for t in case.real_tensors().values()]
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        try:
            results.append(torch.autograd.grad(nade_log_prob(case).sum(), leaves))
        finally:
            torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


BAD_INPUTS = {
    "x must have shape": {"x": torch.zeros(2, 3, 4)},
    "x must have at least one variable": {"x": torch.zeros(2, 0)},
    "in_weight must have a multiple of D = 3": {"in_weight": torch.zeros(4, 5)},
    "out_weight must have 5 hidden units": {"out_weight": torch.zeros(3, 6)},
    "out_weight must have the dtype of in_weight": {"out_weight": torch.zeros(3, 5, dtype=torch.float64)},
    "in_bias must have shape": {"in_bias": torch.zeros(1, 2, 5)},
    "in_bias must have 2 rows, as x has": {"in_bias": torch.zeros(3, 5)},
    "out_bias must have 3 entries, one per row of out_weight": {"out_bias": torch.zeros(4)},
    "order must be int64": {"order": torch.arange(3, dtype=torch.int32)},
    "order must have 3 entries, one per variable": {"order": torch.arange(4)},
    "activation must be sigmoid, tanh or relu, got 'gelu'": {"activation": "gelu"},
    "activation_scale must have 3 entries": {"activation_scale": torch.ones(2)},
    "x must be bool, integer, float32, got float64": {"x": torch.zeros(2, 3, dtype=torch.float64)},
    "x must be real": {"x": torch.zeros(2, 3, dtype=torch.complex64)},
    "x must be an integer category": {"in_weight": torch.zeros(6, 5)},
    "in_weight must be float32": {"in_weight": torch.zeros(3, 5, dtype=torch.int32)},
    "out_offsets must have 4 entries": {"out_offsets": torch.arange(3)},
}


@pytest.mark.parametrize("message", BAD_INPUTS)
def test_bad_input(device, message):
    case = nade_case(2, 3, 5, device=device, ordered=False)
    for name, value in BAD_INPUTS[message].items():
        setattr(case, name, value.to(device) if isinstance(value, torch.Tensor) else value)
    with pytest.raises(RuntimeError, match=f"^nade: {message}"):
        nade(case)


@pytest.mark.parametrize(
    ("message", "changes"),
    {
        "order must be a permutation": {"order": torch.tensor([0, 0, 1])},
        "out_offsets must run from 0 to 3, got 0 to 4": {"out_offsets": torch.tensor([0, 1, 2, 4])},
        "out_offsets must not descend": {"out_offsets": torch.tensor([0, 2, 1, 3])},
        "algorithm must be one of auto, chunks, got 'fast'": {"algorithm": "fast"},
    }.items(),
)  # fmt: skip
def test_bad_values_on_the_cpu(message, changes):
    case = nade_case(1, 3, 5, ordered=False)
    options = {}
    for name, value in changes.items():
        if name == "algorithm":
            options[name] = value
        else:
            setattr(case, name, value)
    with pytest.raises(RuntimeError, match=f"nade: {message}"):
        nade(case, **options)


def test_a_bernoulli_variable_has_one_parameter(device):
    case = nade_case(2, 3, 5, device=device, parameters=2)
    with pytest.raises(RuntimeError, match=r"nade_log_prob: out_weight must have one row per variable, 3, .* got 6"):
        nade_log_prob(case)


def test_the_head_is_a_bernoulli(device):
    case = nade_case(3, 8, 9, device=device)
    want = -F.binary_cross_entropy_with_logits(nade(case), case.x, reduction="none")
    torch.testing.assert_close(nade_log_prob(case, per_variable=True), want)


@pytest.mark.parametrize("name", available_isas())
def test_mixed_inputs_of_zeros_and_ones_as_odds(name):
    """Enough rows whose values are all 0 or 1, categories among them: the states are odds."""
    case = nade_case(300, 9, 37, x="mixed", parameters=4)
    case.x.copy_(torch.randint(0, 2, case.x.shape))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with isa(name):
            said = explain("nade", *case.arguments()[:5], **keywords(case))
            torch.testing.assert_close(nade(case).double(), expected(case), **TOLERANCE[torch.float32])
            assert_gradients(case, nade, lambda c: reference.nade(*c.arguments()), torch.float32)
    finally:
        torch.set_num_threads(threads)
    assert any("states as odds" in line for line in said)
