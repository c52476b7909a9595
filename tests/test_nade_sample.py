"""The op nade_sample: equal to its twin draw by draw, and bit for bit independent of how the work is cut."""

import pytest
import torch
from conftest import available_isas, isa
from nade_cases import nade_case

from ar_fast import functional, reference

FIXED_SEED = 0


def sampler(case, batch, **options):
    """A call of nade_sample on ``case``'s weights for ``batch`` rows."""
    dtype = reference.compute_dtype(case.in_weight.dtype)
    state = options.pop("state", None)
    if state is None:
        state = case.in_bias.to(dtype).expand(batch, -1)
    return functional.nade_sample(
        state, case.in_weight, case.out_weight, case.out_bias, order=case.order,
        activation_scale=case.activation_scale, activation=case.activation, **{"seed": 11, **options},
    )  # fmt: skip


def twin(case, batch, **options):
    case = case.upcast()
    arguments = {
        "order": case.order, "activation_scale": case.activation_scale, "given": None, "known": None,
        "activation": case.activation, "seed": 11, "first_index": 0, "start": 0, "stop": case.x.shape[1],
        "temperature": 1.0, **options,
    }  # fmt: skip
    if arguments["given"] is not None:
        arguments["given"] = arguments["given"].double()
    state = case.in_bias.expand(batch, -1)
    return reference.nade_sample(state, case.in_weight, case.out_weight, case.out_bias, **arguments)


def assert_equal_draws(got, want, dtype):
    """Draws may differ only where rounding decides, which these seeds do not hit; the rest agrees within rounding."""
    values, log_prob, state = got
    assert log_prob.dtype == torch.float64
    assert torch.equal(values.double(), want[0])
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(log_prob, want[1], **tolerance)
    torch.testing.assert_close(state.double(), want[2], **tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(0, 3, 5), (1, 1, 1), (5, 7, 19), (3, 33, 111), (2, 5, 989)], ids=str)
def test_draws_equal_the_twin(device, dtype, size):
    batch, variables, hidden = size
    case = nade_case(batch, variables, hidden, dtype=dtype, device=device)
    assert_equal_draws(sampler(case, batch), twin(case, batch), dtype)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
@pytest.mark.parametrize("scaled", [False, True])
def test_every_activation(device, activation, scaled):
    case = nade_case(4, 9, 37, device=device, activation=activation, scaled=scaled)
    assert_equal_draws(sampler(case, 4), twin(case, 4), torch.float32)


@pytest.mark.parametrize("name", available_isas())
def test_every_instruction_set(name):
    case = nade_case(4, 30, 77)
    with isa(name):
        assert_equal_draws(sampler(case, 4), twin(case, 4), torch.float32)


def test_known_variables_are_taken_not_drawn(device):
    case = nade_case(6, 9, 21, device=device)
    given = (torch.rand(6, 9, device=device) < 0.5).float()
    known = torch.rand(6, 9, device=device) < 0.5
    options = {"given": given, "known": known, "temperature": 0.7, "first_index": 2**40 + 3}
    got = sampler(case, 6, **options)
    assert_equal_draws(got, twin(case, 6, **options), torch.float32)
    drawn = torch.empty_like(given)
    drawn[:, case.order] = got[0]
    assert torch.equal(drawn[known], given[known])


def test_log_prob_is_that_of_the_drawn_values(device):
    case = nade_case(5, 12, 33, device=device)
    values, log_prob, _ = sampler(case, 5, temperature=1.7)
    x = torch.empty_like(values)
    x[:, case.order] = values
    want = functional.nade_log_prob(x, case.in_weight, case.in_bias, case.out_weight, case.out_bias, order=case.order)
    torch.testing.assert_close(log_prob, want.double(), rtol=1e-5, atol=1e-5)


def test_batches_can_be_cut_anywhere(device):
    case = nade_case(1, 17, 70, device=device)
    whole = sampler(case, 13)
    first, second = sampler(case, 5), sampler(case, 8, first_index=5)
    for a, b, c in zip(whole, first, second, strict=True):
        assert torch.equal(a, torch.cat([b, c]))


def test_positions_can_be_cut_anywhere(device):
    case = nade_case(1, 17, 70, device=device)
    values, log_prob, state = sampler(case, 6)
    pieces, start = [], None
    for begin, end in ((0, 5), (5, 5), (5, 6), (6, 17)):
        pieces.append(sampler(case, 6, state=start, start=begin, stop=end))
        start = pieces[-1][2]
    assert torch.equal(torch.cat([p[0] for p in pieces], 1), values)
    assert torch.equal(start, state)
    torch.testing.assert_close(sum(p[1] for p in pieces), log_prob, rtol=1e-13, atol=1e-13)


def test_threads_do_not_matter():
    case = nade_case(1, 40, 130)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        try:
            results.append(sampler(case, 11))
        finally:
            torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_inputs_are_not_modified(device):
    case = nade_case(1, 5, 8, device=device)
    state = case.in_bias.expand(3, -1).clone()
    before = state.clone()
    sampler(case, 3, state=state)
    assert torch.equal(state, before)


def test_opcheck(device, ops):
    case = nade_case(1, 5, 8, device=device)
    state = case.in_bias.expand(3, -1).contiguous()
    torch.library.opcheck(
        ops.nade_sample.default,
        (
            state,
            case.in_weight,
            case.out_weight,
            case.out_bias,
            case.order,
            None,
            None,
            None,
            "sigmoid",
            3,
            0,
            1,
            4,
            1.0,
        ),
    )


@pytest.mark.parametrize(
    ("message", "options"),
    {
        "state must have 8 hidden units": {"state": torch.zeros(2, 7)},
        "state must be float32": {"state": torch.zeros(2, 8, dtype=torch.float64)},
        "given and known come together": {"known": torch.ones(2, 5, dtype=torch.bool)},
        "known must have 5 variables": {"given": torch.zeros(2, 5), "known": torch.ones(2, 4, dtype=torch.bool)},
        "known must be bool": {"given": torch.zeros(2, 5), "known": torch.ones(2, 5)},
        "positions must satisfy": {"start": 3, "stop": 6},
        "temperature must be positive, got 0": {"temperature": 0.0},
    }.items(),
)
def test_bad_input(device, message, options):
    case = nade_case(2, 5, 8, device=device)
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    with pytest.raises(RuntimeError, match=f"nade_sample: {message}"):
        sampler(case, 2, **options)
