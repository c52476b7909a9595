"""rnn_sample's grid of matrix instructions under the emulation: blocks that wait for one another, in every order."""

import emulated
import pytest
import torch
from grids import pairs
from rnn_cases import CELLS, HEADS, assert_equal_bits, assert_equal_draws, by_reference, in_calls, op_case, sample

from ar_fast import _library

FIXED_SEED = 0
# Units of which a block of an sm_86 does not hold the weights; for two of the cells they end within a vector.
HIDDEN = {"gru": 137, "lstm": 121, "rnn": 240, "rnn_relu": 235}


@pytest.fixture(params=list(emulated.ORDERS), autouse=True)
def fiber_order(request):
    emulated.load()
    torch.use_deterministic_algorithms(True)
    with emulated.fiber_order(request.param), _library.use("ar_fast_emulated"):
        yield
    torch.use_deterministic_algorithms(False)


def matrix_case(batch, variables, cell="gru", **options):
    return op_case(batch, variables, HIDDEN[cell], cell=cell, dtype=torch.bfloat16, **options)


def on_matrices(case, multiprocessors=8, **options):
    """The sample of a GPU with as many multiprocessors, by matrix instructions."""
    found = []
    with emulated.gpu(capability=8, multiprocessors=multiprocessors):
        (line,) = emulated.explain(lambda: found.append(sample(case, **options)))
    assert "matrix instructions, weights in registers" in line
    return found[0]


@pytest.mark.parametrize("cell, head, blocks", pairs(CELLS, HEADS, [(1, 6), (2, 11), (5, 8), (5, 40)]))
def test_it_draws_what_the_reference_does(cell, head, blocks):
    """With one team, or one for each pair of rows."""
    batch, multiprocessors = blocks
    case = matrix_case(batch, 2, cell, head=head, row_bias=batch == 2)
    discrete = head not in ("gaussian_mixture", "logistic_mixture")
    run = on_matrices(case, multiprocessors)
    assert_equal_draws(run, by_reference(case), torch.bfloat16, discrete)


def test_rows_do_not_depend_on_the_batch_nor_on_where_calls_end():
    case = matrix_case(5, 4)
    run = on_matrices(case)
    assert_equal_bits(on_matrices(case, multiprocessors=40), run)
    with emulated.gpu(capability=8, multiprocessors=8):
        assert_equal_bits(in_calls(case, [0, 1, 3]), run)
    of_last = {**case, "state": case["state"][:, 4:], "last": case["last"][4:], "first_index": 4}
    last = on_matrices(of_last)
    assert torch.equal(last.values, run.values[4:]) and torch.equal(last.state, run.state[:, 4:])


def test_rows_that_finish():
    """Before the others, and all before the end: then every block leaves, and the states are what they were."""
    case = matrix_case(5, 4, "lstm")
    known = torch.zeros(5, 4, dtype=torch.bool)
    known[:, 0] = True
    options = {"stop_token": 2, "given": torch.ones(5, 4), "known": known, "top_k": 4, "top_p": 0.9, "temperature": 0.8}
    for limits in ([0, 1, 2, 4, 3], [1, 2, 2, 1, 0], [0] * 5):
        rules = {**options, "limits": torch.tensor(limits)}
        run = on_matrices(case, **rules)
        assert_equal_draws(run, by_reference(case, **rules), torch.bfloat16)
        with emulated.gpu(capability=8, multiprocessors=8):
            assert_equal_bits(in_calls(case, [0, 2], **rules), run)


def test_states_keep_their_bits():
    """Far apart, infinite, and not a number: what is not finite stays in its row."""
    case = matrix_case(4, 2, "rnn_relu")
    case["state"][0, 1] *= 1e-30
    case["state"][0, 2, ::3] *= 1e20
    want = by_reference(case)
    assert_equal_draws(on_matrices(case), want, torch.bfloat16)
    case["state"][0, 0, 7], case["state"][0, 3, 5] = float("nan"), float("inf")
    run = on_matrices(case)
    assert run.state[:, 0].isnan().all() and not run.state[:, 3].isfinite().any()
    torch.testing.assert_close(run.state[:, 1:3].double(), want.state[:, 1:3], rtol=2e-4, atol=2e-4)


def test_weights_at_any_address():
    case = matrix_case(2, 2)
    plain = on_matrices(case)
    for name in ("recurrent_weights", "out_weight"):
        weight = case[name][0] if isinstance(case[name], list) else case[name]
        moved = torch.cat([weight.new_zeros(1), weight.flatten()])[1:].view_as(weight)
        case[name] = [moved] if isinstance(case[name], list) else moved
    assert_equal_bits(on_matrices(case), plain)


@pytest.mark.parametrize(
    "obstacle, options, multiprocessors",
    [
        ("weights that are not bfloat16", {"dtype": torch.float16}, 8),
        ("more than one layer", {"layers": 2}, 8),
        ("more than 512 units", {"hidden": 513, "cell": "rnn"}, 8),
        ("too few multiprocessors", {}, 4),
        ("a GPU below sm_80", {}, 8),
    ],
)
def test_why_a_grid_is_without_them(obstacle, options, multiprocessors):
    case = op_case(**{"batch": 2, "variables": 1, "hidden": 140, "dtype": torch.bfloat16, **options})
    capability = 7 if "sm_80" in obstacle else 8
    with emulated.gpu(capability=capability, multiprocessors=multiprocessors):
        lines = emulated.explain(lambda: sample(case))
        assert f"no matrix instructions because of {obstacle}" in lines[-1]


def test_more_than_128_parameters_keep_the_other_grid():
    case = matrix_case(2, 1)
    rows = 3 * HIDDEN["gru"]
    case |= {"in_table": torch.randn(129, rows), "out_bias": torch.randn(129).bfloat16()}
    case["out_weight"] = torch.randn(129, HIDDEN["gru"]).bfloat16()
    with emulated.gpu(capability=8, multiprocessors=8):
        (line,) = emulated.explain(lambda: sample(case))
    assert "no matrix instructions because of more than 128 parameters" in line
