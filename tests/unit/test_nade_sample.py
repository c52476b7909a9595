"""The op nade_sample: equal to its reference draw by draw, and bit for bit independent of how the work is cut."""

import pytest
import torch
from conftest import available_isas, isa
from nade_cases import nade_case

from ar_fast import functional, reference

FIXED_SEED = 0


def structure(case):
    names = ("order", "in_offsets", "out_offsets", "activation_scale", "activation", "head", "levels", "head_kinds")
    return {name: getattr(case, name) for name in names}


def sampler(case, batch, **options):
    """A call of nade_sample on ``case``'s weights for ``batch`` rows."""
    dtype = reference.compute_dtype(case.in_weight.dtype)
    state = options.pop("state", None)
    if state is None:
        state = case.in_bias.to(dtype).expand(batch, -1)
    return functional.nade_sample(
        state, case.in_weight, case.out_weight, case.out_bias,
        **{"seed": 11, "variables": case.x.shape[1], **structure(case), **options},
    )  # fmt: skip


def by_reference(case, batch, **options):
    case = case.upcast()
    arguments = {
        **structure(case), "variables": case.x.shape[1], "given": None, "known": None, "seed": 11, "first_index": 0,
        "start": 0, "stop": case.x.shape[1], "temperature": 1.0, **options,
    }  # fmt: skip
    if arguments["given"] is not None:
        arguments["given"] = arguments["given"].double()
    state = case.in_bias.expand(batch, -1)
    return reference.nade_sample(state, case.in_weight, case.out_weight, case.out_bias, **arguments)


def assert_equal_draws(got, want, dtype, discrete=True):
    """Draws may differ only where rounding decides, which these seeds do not hit; the rest agrees within rounding."""
    values, log_prob, state = got
    assert log_prob.dtype == torch.float64
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(values.double(), want[0], **({"rtol": 0, "atol": 1e-6} if discrete else tolerance))
    torch.testing.assert_close(log_prob, want[1], **tolerance)
    torch.testing.assert_close(state.double(), want[2], **tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(0, 3, 5), (1, 1, 1), (5, 7, 19), (3, 33, 111), (2, 5, 989)], ids=str)
def test_draws_equal_the_reference(device, dtype, size):
    batch, variables, hidden = size
    case = nade_case(batch, variables, hidden, dtype=dtype, device=device)
    assert_equal_draws(sampler(case, batch), by_reference(case, batch), dtype)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
@pytest.mark.parametrize("scaled", [False, True])
def test_every_activation(device, activation, scaled):
    case = nade_case(4, 9, 37, device=device, activation=activation, scaled=scaled)
    assert_equal_draws(sampler(case, 4), by_reference(case, 4), torch.float32)


HEADS = {
    "categorical": {"head": "categorical", "parameters": 3},
    "one category": {"head": "categorical", "parameters": 1},
    "many categories": {"head": "categorical", "parameters": 111},
    "ragged categories": {"head": "categorical", "ragged": True},
    "gaussian_mixture": {"head": "gaussian_mixture", "parameters": 5},
    "ragged gaussian_mixture": {"head": "gaussian_mixture", "ragged": True, "activation": "relu", "scaled": True},
    "logistic_mixture": {"head": "logistic_mixture", "parameters": 19},
    "per_variable": {"head": "per_variable", "parameters": 4},
    "per_variable, scaled": {"head": "per_variable", "parameters": 40, "activation": "relu", "scaled": True},
}
REAL = ("gaussian_mixture", "per_variable")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_every_head(device, dtype, head):
    case = nade_case(5, 9, 37, dtype=dtype, device=device, **HEADS[head])
    discrete = case.head not in REAL
    for options in ({}, {"temperature": 0.6, "first_index": 7}):
        assert_equal_draws(sampler(case, 5, **options), by_reference(case, 5, **options), dtype, discrete)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_knows_and_is_cut_anywhere(device, head):
    case = nade_case(6, 9, 21, device=device, **HEADS[head])
    compute = reference.compute_dtype(case.in_weight.dtype)
    options = {"given": case.x.to(compute), "known": torch.rand(6, 9, device=device) < 0.4}
    whole = sampler(case, 6, **options)
    assert_equal_draws(whole, by_reference(case, 6, **options), torch.float32, case.head not in REAL)
    first = sampler(case, 6, **options, stop=4)
    rest = sampler(case, 6, **options, start=4, state=first[2])
    assert torch.equal(torch.cat([first[0], rest[0]], 1), whole[0]) and torch.equal(rest[2], whole[2])
    rows = [sampler(case, 1, first_index=i, **{k: v[i : i + 1] for k, v in options.items()}) for i in range(6)]
    for index, part in enumerate(whole):
        assert torch.equal(torch.cat([row[index] for row in rows]), part)


@pytest.mark.parametrize("name", available_isas())
@pytest.mark.parametrize("head", HEADS)
def test_every_head_on_every_instruction_set(name, head):
    case = nade_case(5, 30, 77, **HEADS[head])
    with isa(name):
        assert_equal_draws(sampler(case, 5), by_reference(case, 5), torch.float32, case.head not in REAL)


@pytest.mark.parametrize("name", available_isas())
def test_a_lone_row_is_drawn_as_in_a_batch(name):
    """Alone a row looks ahead over zeros, in a batch it goes step by step beside others: the same bits."""
    case = nade_case(1, 100, 130)
    case.out_bias.sub_(2.0)
    with isa(name):
        whole = sampler(case, 9)
        for i in range(9):
            for a, b in zip(sampler(case, 1, first_index=i), whole, strict=True):
                assert torch.equal(a[0], b[i])


@pytest.mark.parametrize("name", available_isas())
def test_every_instruction_set(name):
    case = nade_case(4, 30, 77)
    with isa(name):
        assert_equal_draws(sampler(case, 4), by_reference(case, 4), torch.float32)


def test_known_variables_are_taken_not_drawn(device):
    case = nade_case(6, 9, 21, device=device)
    given = (torch.rand(6, 9, device=device) < 0.5).float()
    known = torch.rand(6, 9, device=device) < 0.5
    options = {"given": given, "known": known, "temperature": 0.7, "first_index": 2**40 + 3}
    got = sampler(case, 6, **options)
    assert_equal_draws(got, by_reference(case, 6, **options), torch.float32)
    drawn = torch.empty_like(given)
    drawn[:, case.order] = got[0]
    assert torch.equal(drawn[known], given[known])


@pytest.mark.parametrize("head", ["bernoulli", *HEADS])
def test_log_prob_is_that_of_the_drawn_values(device, head):
    case = nade_case(5, 12, 33, device=device, **HEADS.get(head, {}))
    values, log_prob, _ = sampler(case, 5, temperature=1.7)
    x = torch.empty_like(values)
    x[:, case.order] = values
    x = x if case.x.is_floating_point() else x.long()
    want = functional.nade_log_prob(x, *case.arguments()[1:5], **structure(case))
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


@pytest.mark.heavy
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
            None,
            None,
            5,
            "sigmoid",
            "bernoulli",
            0,
            None,
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
        "head must be bernoulli, categorical, .*, got 'poisson'": {"head": "poisson"},
        "levels must be at least 2 for logistic_mixture, got 1": {"head": "logistic_mixture", "levels": 1},
        "levels must be 0 except for logistic_mixture, got 4": {"levels": 4},
        "out_weight must have 3 K rows per variable .* got 5": {"head": "gaussian_mixture"},
        "in_weight must have a multiple of D = 3 rows": {"variables": 3, "order": torch.arange(3), "stop": 3},
    }.items(),
)
def test_bad_input(device, message, options):
    case = nade_case(2, 5, 8, device=device)
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    with pytest.raises(RuntimeError, match=f"nade_sample: {message}"):
        sampler(case, 2, **options)
