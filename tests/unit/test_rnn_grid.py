"""rnn_sample's CUDA kernel under the emulation: blocks that wait for one another, in every order of threads."""

import emulated
import pytest
import torch
from grids import pairs
from rnn_cases import CELLS, assert_equal_bits, assert_equal_draws, by_reference, op_case, sample

from ar_fast import _library

FIXED_SEED = 0


@pytest.fixture(params=list(emulated.ORDERS), autouse=True)
def fiber_order(request):
    emulated.load()
    torch.use_deterministic_algorithms(True)
    with emulated.fiber_order(request.param), _library.use("ar_fast_emulated"):
        yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "cell, dtype, multiprocessors",
    pairs(CELLS, [torch.float32, torch.bfloat16, torch.float64], [2, 3, 5, 16, 20]),
)
def test_a_grid_draws_what_the_reference_does(cell, dtype, multiprocessors):
    """With 16 multiprocessors one of the 4 blocks that draw has no row; with 20 each of them has one."""
    case = op_case(5, 3, 19, 2, cell=cell, dtype=dtype)
    with emulated.gpu(multiprocessors=multiprocessors):
        run = sample(case, algorithm="grid")
        assert_equal_draws(run, by_reference(case), dtype)
        assert_equal_bits(sample(case, algorithm="block"), run)


def test_rows_that_finish_in_a_grid():
    """Before the others, and all before the end: then every block leaves, and the states are what they were."""
    case = op_case(7, 6, 13, 2, cell="lstm")
    known = torch.zeros(7, 6, dtype=torch.bool)
    known[:, 0] = True
    options = {"stop_token": 2, "given": torch.ones(7, 6), "known": known, "top_k": 4, "top_p": 0.9}
    for limits in ([0, 1, 2, 6, 9, 3, 1], [0, 1, 2, 3, 3, 2, 1], [0] * 7):
        rules = {**options, "limits": torch.tensor(limits)}
        with emulated.gpu(multiprocessors=4):
            run = sample(case, **rules, algorithm="grid")
            assert_equal_draws(run, by_reference(case, **rules), torch.float32)
            assert_equal_bits(sample(case, **rules, algorithm="block"), run)


def test_weights_that_no_shared_memory_holds():
    """On an sm_75 of two multiprocessors; rows that 128 bits fit, and rows that they do not."""
    for hidden in (128, 131):
        case = op_case(2, 2, hidden, head="many categories")
        with emulated.gpu(capability=7, multiprocessors=2):
            for algorithm, how in (("grid", "cooperative grid of 1 x"), ("block", "blocks of 1 x")):
                lines = emulated.explain(lambda case=case, name=algorithm: sample(case, algorithm=name))
                assert how in lines[0] and "weights in global memory" in lines[0]
                assert_equal_draws(sample(case, algorithm=algorithm), by_reference(case), torch.float32)


def test_more_rows_and_parameters_than_a_block_has_at_once():
    """Chunks of 16 rows and 32 units; parameters in global memory."""
    case = op_case(37, 2, 41, head="bernoulli")
    with emulated.gpu(multiprocessors=2):
        assert_equal_draws(sample(case, algorithm="grid"), by_reference(case), torch.float32)
    case = op_case(3, 2, 5)
    case |= {"in_table": torch.randn(700, 15), "out_weight": torch.randn(700, 5), "out_bias": torch.randn(700)}
    with emulated.gpu(multiprocessors=2):
        assert_equal_draws(sample(case, algorithm="grid"), by_reference(case), torch.float32)


def test_small_models_take_blocks_and_large_ones_a_grid():
    (line,) = emulated.explain(lambda: sample(op_case(16, 1, 64)))
    assert "16 blocks of 1 x 64 units" in line and "weights in shared memory" in line
    with emulated.gpu(multiprocessors=3):
        (line,) = emulated.explain(lambda: sample(op_case(2, 1, 150)))
    assert "1 cooperative grid of 2 x 75 units and 1 blocks that draw" in line and "weights in shared memory" in line
