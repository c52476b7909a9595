"""The ops keep their promises of docs/numerics.md, and its tables have a row for each of them."""

# ruff: noqa: E402 (the path to bench/ is set first)

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from grids import skip_module_without

skip_module_without("bench", "sklearn")

# bench/ is not installed. At the end, so that an installed ar_fast comes before this folder's.
ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from ar_fast import Mask, functional
from bench import numerics, numerics_cases, numerics_functions, numerics_training, tables

PAGE = (ROOT / "docs" / "numerics.md").read_text(encoding="utf-8")
STORED = json.loads((tables.RESULTS / "numerics.json").read_text(encoding="utf-8"))


def test_every_op_and_dtype_has_a_row():
    assert {*numerics_cases.OPS, *numerics_cases.ONLY_ON_CUDA} == set(functional.__all__)
    rows = [numerics.Row(**row) for row in STORED["ops"]]
    assert [(row.op, row.dtype) for row in rows] == [
        (op, str(dtype).removeprefix("torch.")) for op, dtype in numerics.combinations()
    ]
    assert numerics.table(rows) in PAGE
    assert numerics_functions.table(STORED["functions"]) in PAGE
    assert list(STORED["functions"]) == ["DEFAULT", "AVX2", "AVX512"]


def test_the_page_s_promises_are_those_that_are_tested():
    rows = [numerics.Row(**row) for row in STORED["ops"]]
    for row in rows:
        promised = numerics.promise(row.op, getattr(torch, row.dtype))
        assert row.kept, f"{row.op} in {row.dtype}"
        assert row.promised_results == promised.results
        assert row.promised_gradients == (None if row.gradients is None else promised.gradients)


@pytest.mark.parametrize("op, dtype", numerics.combinations(), ids=str)
def test_promises_are_kept(op, dtype):
    """On the inputs of the page's table, without the long ones."""
    row = numerics.measure(op, dtype, long=False, plain=False)
    assert row.kept, row


@pytest.mark.full
@pytest.mark.parametrize("op, dtype", numerics.combinations(), ids=str)
def test_promises_are_kept_on_long_sums_too(op, dtype):
    row = numerics.measure(op, dtype, plain=False)
    assert row.kept, row


def test_the_page_has_the_trainings_that_were_run():
    stored = json.loads((tables.RESULTS / "numerics-training.json").read_text(encoding="utf-8"))
    rows = [numerics_training.Training(**row) for row in stored["trainings"]]
    assert [(row.model, row.way) for row in rows] == [
        (model, way) for model in ("nade", "made") for way in numerics_training.WAYS
    ]
    assert numerics_training.table(rows) in PAGE and numerics_training.kept(rows)
    assert numerics_training.caption(stored["data"], stored["hidden"], stored["epochs"]) in PAGE


def test_an_error_is_found():
    want = torch.tensor([1.0, -4.0], dtype=torch.float64)
    assert numerics.error(want.float(), want, 0.0, torch.float32) == 0
    assert numerics.error(torch.tensor([1.0, -3.0]), want, 0.0, torch.float32) == 0.25
    assert numerics.error(torch.tensor([1.0, -3.0]), want, 10.0, torch.float32) == 0.1
    assert numerics.error(torch.tensor([float("nan"), -4.0]), want, 0.0, torch.float32) == float("inf")
    infinite = torch.tensor([float("inf")])
    assert numerics.error(infinite, infinite.double(), 0.0, torch.float32) == 0


def test_functions_are_near_those_of_float64():
    errors = {own.name: own for own in numerics_functions.measure(step=65_536, dense=20_000)}
    for name, own in errors.items():
        # A state in units of log 2 has rounded the exponent of a sigmoid, as far from zero as it lies.
        assert own.ulp < (100 if name == "sigmoid of a NADE's state" else 6), own
        assert own.below < 1e-35, own


def test_silu_of_the_most_negative_numbers_is_zero():
    """The sigmoid of such a number is up to 6e-39, and times the number it was felt."""
    x = torch.tensor([[-3e38], [-1e30], [-200.0], [-104.0]])
    y = functional.masked_linear(x, torch.ones(1, 1), Mask.dense(1, 1), activation="silu")
    assert y.abs().max() < 1e-35


def test_the_reference_s_softplus_is_exact_in_float64():
    logits = torch.linspace(19, 45, 50, dtype=torch.float64)[:, None]
    from ar_fast import reference

    got = reference.head_log_prob(logits, torch.ones_like(logits), None, "bernoulli", 0)
    torch.testing.assert_close(got, torch.nn.functional.logsigmoid(logits), rtol=0, atol=1e-14)


def test_training_is_compared_by_what_it_loses():
    rows = [
        numerics_training.Training("made", "float32", 3, -80.0, 0.5),
        numerics_training.Training("made", "autocast", 3, -80.2, 0.5),
    ]
    assert numerics_training.kept(rows)
    assert "| MADE | float32 under autocast to bfloat16 | 3 | -80.20 ± 0.50 | -0.20 |" in numerics_training.table(rows)
    rows[1] = numerics_training.Training("made", "autocast", 3, -80.4, 0.5)
    assert not numerics_training.kept(rows)


def test_autocast_leaves_the_training_of_a_nade_as_it_is():
    """The op computes in float32 under autocast, so that the same parameters come out."""
    few = {"data": "digits", "hidden": 8, "epochs": 1}
    exact, under = (numerics_training.trained("nade", way, **few) for way in ("float32", "autocast"))
    assert exact.test == under.test


@pytest.mark.full
def test_training_under_autocast_reaches_the_likelihood_of_float32():
    few = {"data": "digits", "hidden": 100, "epochs": 30}
    rows = [numerics_training.trained("made", way, **few) for way in ("float32", "autocast")]
    assert numerics_training.kept(rows), rows


def test_a_table_takes_the_place_of_the_one_before(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x -->\nold\n<!-- end of x -->\nb\n")
    tables.replace_between(page, "x", "new\n")
    assert page.read_text() == "a\n<!-- x -->\n\nnew\n\n<!-- end of x -->\nb\n"
    with pytest.raises(ValueError, match=re.escape("page.md must have the lines <!-- y --> and <!-- end of y -->")):
        tables.replace_between(page, "y", "new")
