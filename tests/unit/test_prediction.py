"""Predicted times: intervals, units, growth with the sizes, and the form of `python -m bench --predict --json`."""

import dataclasses
import json
import sys

import launch_geometry
import pytest

from bench import __main__ as command
from bench.prediction import calibration, kernels, model, rates, table
from bench.prediction.cases import CASES

PATHS = {"loop": {"warp_cycles": [100, 200, 300], "busy_cycles": [50, 50, 60]}}
LAUNCH = model.Launch("kernel", blocks=132, warps=4, resident=2, turns={"loop": 1000})


@pytest.fixture(scope="module")
def rows():
    return table.rows()


def test_intervals_contain_their_middle(rows):
    for row in rows:
        assert 0 < row.prediction.low < row.prediction.middle < row.prediction.high, row.case.name
        for name, times in row.prediction.kernels:
            assert list(times) == sorted(times), (row.case.name, name)


def test_every_goal_has_a_row_and_every_row_its_goal(rows):
    goals = {goal["case"]: goal for goal in json.loads(table.GOALS.read_text())}
    found = {row.case.name: row for row in rows}
    assert len(found) == len(CASES)
    assert goals.keys() <= found.keys()
    for name, goal in goals.items():
        assert (found[name].floor_us, found[name].goal_us) == (goal["floor_us"], goal["goal_us"])


def test_no_prediction_is_below_the_floor(rows):
    for row in rows:
        if row.prediction is not None and row.floor_us is not None:
            assert row.prediction.high > row.floor_us, row.case.name


def test_units_are_microseconds():
    """A warp on each partition: 1000 turns of 200 cycles, and a quarter of the 50 that it computes."""
    expected = 1000 * (200 + 0.25 * 50) / (rates.CLOCK_GHZ.middle * 1e3) + rates.BLOCK_START_US.middle
    assert model.kernel_us(LAUNCH, PATHS)[1] == pytest.approx(expected)
    two = model.predict([LAUNCH, LAUNCH], PATHS)
    assert two.middle == pytest.approx(2 * (expected + rates.LAUNCH_US.middle))
    # 4.2 TB/s: a gigabyte takes 238 us.
    streaming = dataclasses.replace(LAUNCH, turns={}, dram_bytes=1e9)
    assert model.kernel_us(streaming, PATHS)[1] == pytest.approx(1e3 / rates.DRAM_TBPS.middle, rel=0.01)


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": 133 * 2}, {"blocks": 1320}, {"warps": 32}, {"turns": {"loop": 2000}}, {"longest": 2.0},
        {"dram_bytes": 1e10}, {"l2_bytes": 1e10}, {"grid_barriers": 10}, {"cluster_barriers": 10},
        {"waits": {"dram": 100}},
    ],
    ids=str,
)  # fmt: skip
def test_more_work_takes_longer(change):
    more = model.kernel_us(dataclasses.replace(LAUNCH, **change), PATHS)
    assert all(a > b for a, b in zip(more, model.kernel_us(LAUNCH, PATHS), strict=True))


def test_the_tail_of_a_wave_costs_a_block():
    whole, one_more = (dataclasses.replace(LAUNCH, blocks=blocks) for blocks in (132 * 2, 132 * 2 + 1))
    alone = model.kernel_us(dataclasses.replace(LAUNCH, blocks=1), PATHS)[1]
    difference = model.kernel_us(one_more, PATHS)[1] - model.kernel_us(whole, PATHS)[1]
    assert difference == pytest.approx(alone - rates.BLOCK_START_US.middle)


def test_products_run_in_waves():
    """132 tiles of 128 x 256 are one wave, 133 are two; a product of no terms only writes."""
    wave, more = (model.product_us(model.Product("product", 128 * tiles, 256, 1024)) for tiles in (132, 133))
    assert wave[0] < wave[1] < wave[2]
    assert more == pytest.approx([2 * time for time in wave])
    assert wave[1] == pytest.approx(2 * 128 * 132 * 256 * 1024 / rates.PRODUCT_TFLOPS.middle / 1e6)
    writes = model.product_us(model.Product("product", 4096, 4096, 0))
    assert writes[1] == pytest.approx(2 * 4096**2 / rates.DRAM_TBPS.middle / 1e6)
    launched = model.predict([model.Product("product", 128, 256, 1024)], {})
    assert launched.middle == pytest.approx(wave[1] + rates.LAUNCH_US.middle)


def test_published_products_are_met_within_15_percent():
    found = calibration.comparisons("products")
    assert len(found) == 2
    for each in found:
        assert abs(each.error) <= 0.15, (each.name, each.error)


def test_times_grow_with_the_sizes():
    """Of the same launches, with more variables, hidden units, rows or ones in each case."""
    counts, geometry = kernels.Table(), json.loads(kernels.LAUNCHES.read_text())
    for case in CASES:
        if case.kind == "made sampling":
            continue
        before = model.predict(kernels.launches_of(case, counts, geometry), counts.paths)
        larger = {
            "variables": 2 * case.variables,
            "hidden": 2 * case.hidden,
            "batch": 2 * case.batch,
            "layers": tuple(2 * width for width in case.layers),
        }
        if case.steps > 1:  # In the cut of its launches a block draws a row.
            larger |= {"batch": case.batch}
        changed = dataclasses.replace(case, **larger)
        after = model.predict(kernels.launches_of(changed, counts, geometry), counts.paths)
        assert after.middle > before.middle, case.name


def test_rates_are_intervals_with_a_source():
    for rate in (*rates.LATENCY.values(), *rates.BUSY.values(), rates.LAUNCH_US, rates.GRID_BARRIER_US,
                 rates.CLUSTER_BARRIER_US, rates.BLOCK_START_US, rates.SHARED_BUSY):  # fmt: skip
        assert rate.low <= rate.middle <= rate.high
        assert rate.source
    for rate in (rates.CLOCK_GHZ, rates.L2_TBPS, rates.DRAM_TBPS, rates.PRODUCT_TFLOPS):  # the more, the faster
        assert rate.low >= rate.middle >= rate.high


def test_the_review_is_met_within_40_percent():
    found = calibration.comparisons("reviewed")
    assert len(found) >= 7
    for each in found:
        assert abs(each.error) <= 0.4, (each.name, each.error)
    assert len(calibration.comparisons("public")) == 3


def test_launches_are_those_that_the_launchers_make():
    committed = json.loads(kernels.LAUNCHES.read_text())
    assert committed == launch_geometry.collect(), "run `python tests/launch_geometry.py --update`"


def test_command_without_compiler_and_disassembler(tmp_path, monkeypatch, capsys):
    """PATH is empty: the committed counts are enough."""
    monkeypatch.setenv("PATH", "")
    path = tmp_path / "predictions.json"
    monkeypatch.setattr(sys, "argv", ["bench", "--predict", "--json", str(path)])
    assert command.main() == 0
    assert "predicted, not measured" in capsys.readouterr().out
    written = json.loads(path.read_text())
    assert [row["case"] for row in written] == [case.name for case in CASES]
    for row in written:
        assert list(row) == ["case", "predicted_us", "low_us", "high_us", "floor_us", "goal_us"]
        assert row["low_us"] < row["predicted_us"] < row["high_us"]
    monkeypatch.setattr(sys, "argv", ["bench", "--json", str(path)])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert "--json goes with --predict" in capsys.readouterr().err


def test_the_time_of_a_step_is_that_of_all_of_them_divided():
    whole, step = (model.predict([LAUNCH], PATHS, steps) for steps in (1, 10))
    assert (step.low, step.middle, step.high) == pytest.approx((whole.low / 10, whole.middle / 10, whole.high / 10))
    assert step.kernels[0][1] == pytest.approx([time / 10 for time in whole.kernels[0][1]])
