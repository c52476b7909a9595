"""Properties of every op for random calls: equal to the twin for any arguments, and a clear error for a broken one.

The fast suite has 500 cases of all properties together, the full one 2,000 and ``make fuzz`` 50,000.
"""

import pytest
import strategies
from conftest import SEED
from hypothesis import strategies as st
from properties import check, check_draws, check_equal, check_error

from ar_fast import _library

pytestmark = pytest.mark.heavy

SAMPLERS = [name for name in strategies.CALLS if "_sample" in name]
OTHERS = [name for name in strategies.CALLS if name not in SAMPLERS]
NO_CPU = ("fvsbn_sample",)


@pytest.fixture
def full(request):
    return request.config.getoption("--full")


@pytest.mark.parametrize("name", OTHERS)
def test_equal_to_the_twin(name, full):
    check(check_equal, SEED, full, strategies.calls(name), st.integers(0, 63), st.booleans())


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in NO_CPU])
def test_the_draws_of_the_twin(name, full):
    check(check_draws, SEED, full, strategies.calls(name), st.integers(0, 64))


@pytest.mark.skipif(_library.backend == "reference", reason="the references have a part of the rules")
@pytest.mark.parametrize("name", [name for name in strategies.CALLS if name not in NO_CPU])
def test_a_broken_argument(name, full):
    check(lambda broken: check_error(*broken), SEED, full, strategies.broken(name))
