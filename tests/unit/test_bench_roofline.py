"""What the kernels must do at least, counted by hand at small sizes, and how the figures are written."""

# ruff: noqa: E402 (the path to bench/ is set first)

import json
import sys
from pathlib import Path

import pytest
import torch
from grids import skip_module_without

skip_module_without("bench", "sklearn", "matplotlib")

# bench/ is not installed. At the end, so that an installed ar_fast comes before this folder's.
ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from bench import peaks, roofline, tables
from bench.roofline_kernels import KERNELS, Counts, Kernel, masked_product, nade_gradients, nade_log_prob, recurrent

PEAKS = peaks.Peaks(2, 100.0, 10.0, 50.0, 20.0, 100.0, 40.0, 20.0)


def row(name: str = "NADE", seconds: float = 4.0, work: str | None = None) -> roofline.Row:
    return roofline.Row(name, "B 1", 100.0, 30.0, 20.0, 0.0, "activations", 3.0, seconds, work)


def test_counts_are_those_of_a_loop():
    """A NADE goes over its variables: a product for each logit, and a new state and new activations after each one."""
    batch, variables, hidden = 3, 7, 5
    x = (torch.rand(batch, variables) < 0.4).float()
    multiply_adds = activations = 0
    for values in x:
        activations += hidden
        for value in values:
            multiply_adds += hidden
            activations += 1
            if value != 0:
                multiply_adds += hidden
                activations += hidden
    counts = nade_log_prob(batch, variables, hidden, float(x.sum()))
    assert (counts.multiply_adds, counts.activations) == (multiply_adds, activations)
    assert counts.far == 4 * (2 * 35 + 21)
    backward = nade_gradients(batch, variables, hidden, float(x.sum()))
    assert backward.multiply_adds > 2 * counts.multiply_adds and backward.activations < 2 * counts.activations


def test_counts_of_products_and_recurrent_cells():
    assert masked_product(3, 4, 5, 11) == Counts(33, 0.0, 4 * (11 + 27))
    assert masked_product(3, 4, 5, 11, passes=3) == Counts(99, 0.0, 4 * (33 + 54))
    gru = recurrent(batch=2, steps=3, hidden=4, gates=3, symbols=5, activations=3)
    assert gru.multiply_adds == 6 * (3 * 16 + 5 * 4) and gru.activations == 6 * 17
    assert gru.near == 4 * 3 * 68


def test_the_floor_is_the_longest_of_its_times():
    assert roofline.floor_of(Counts(1000.0, 30.0, 20.0), PEAKS) == ("multiply-adds", 10.0)
    assert roofline.floor_of(Counts(100.0, 30.0, 20.0), PEAKS) == ("activations", 3.0)
    assert roofline.floor_of(Counts(100.0, 1.0, 200.0, 300.0), PEAKS) == ("bytes", 5.0)
    # What fits a cache is read from there.
    assert PEAKS.read(1e5) == 100 and PEAKS.read(1e7) == 40 and PEAKS.read(1e8) == 20


def test_tables():
    assert roofline.table([row()]).splitlines()[-1] == (
        "| NADE | B 1 | 100 | 30 | 20 | activations | 3 s | 4 s | 75% |"
    )
    assert "| multiply-adds of float32 | 100 | 100 |" in roofline.peak_table([PEAKS, PEAKS])
    assert "| 1 thread | 2 threads |" in roofline.peak_table([peaks.Peaks(1, *[1.0] * 7), PEAKS])
    formulas = roofline.formula_table(KERNELS)
    assert all(f"| {kernel.name} |" in formulas for kernel in KERNELS)


def test_readme_gains_the_column_once():
    text = "a\n| work | sizes | |\n|---|---|---:|\n| NADE sampling | B 1 | 2x |\n| other | B 2 | 3x |\n\n| x |\n"
    want = (
        "a\n| work | sizes | | of the floor |\n|---|---|---:|---:|\n"
        "| NADE sampling | B 1 | 2x | 75% |\n| other | B 2 | 3x | |\n\n| x |\n"
    )
    rows = [row(work="NADE sampling"), row()]
    assert roofline.readme_with(text, rows) == want
    assert roofline.readme_with(want, rows) == want
    with pytest.raises(ValueError, match="must have the rows MADE sampling in its table"):
        roofline.readme_with(text, [row(work="MADE sampling")])


def test_the_kernels_of_readme_s_rows_are_in_it():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = [kernel.row for kernel in KERNELS if kernel.row is not None]
    assert len(named) == len(set(named)) == 6
    for name in named:
        assert f"\n| {name} |" in text


def test_the_page_has_what_was_measured():
    stored = json.loads((tables.RESULTS / "roofline.json").read_text(encoding="utf-8"))
    rows = [roofline.Row(**own) for own in stored["kernels"]]
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert [own.name for own in rows] == [kernel.name for kernel in KERNELS]
    assert roofline.table(rows) in page and roofline.formula_table(KERNELS) in page
    assert roofline.peak_table([peaks.Peaks(**own) for own in stored["peaks"]]) in page
    assert f"{roofline.state(stored['environment'])}:" in page
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert roofline.COLUMN not in readme or roofline.readme_with(readme, rows) == readme


def test_a_kernel_is_measured():
    kernel = Kernel("sum", "1000", ("1000", "0", "4000"), lambda: (torch.ones(1000).sum, Counts(1000.0, 0.0, 4000.0)))
    found = roofline.measured(kernel, PEAKS, seconds=0.001)
    assert found.limit == "bytes" and found.floor == 40 and 0 < found.seconds < 40


@pytest.mark.full
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_every_kernel_runs(kernel):
    if "196,608" in kernel.sizes:
        pytest.skip("its weights take 800 MB")
    run, counts = kernel.build()
    run()
    assert counts.multiply_adds > 0 and counts.far > 0


@pytest.mark.full
def test_the_peaks_are_measured():
    one = peaks.measure(1, seconds=0.01, rounds=2)
    assert one.threads == 1 and min(vars(one).values()) > 0
    assert one.multiply_adds > one.sigmoids and one.near_copied > 1e8
