"""bench.orders: every model is trained in every order, and the columns beside them are what they say."""

import re
import sys
from pathlib import Path

import pytest
import torch
from grids import skip_module_without

skip_module_without("bench", "matplotlib", "sklearn", "click")

# bench/ is not installed. At the end, so that an installed ar_fast comes before this folder's.
sys.path.append(str(Path(__file__).parents[2]))

from bench import orders  # noqa: E402 (the path to bench/ is set first)


def test_the_table(tmp_path):
    assert orders.main(["--epochs", "1", "--rows", "200", "--threads", "1", "--out", str(tmp_path)]) == 0
    table = (tmp_path / "orders-8x8.md").read_text()
    rows = re.findall(r"^\| (FVSBN|NADE|MADE|RNN) \|(.*)\|$", table, re.M)
    assert [name for name, _ in rows] == list(orders.MODELS)
    for _, cells in rows:
        means = [float(cell) for cell in cells.split("|")[:8]]
        # Each order is another model.
        assert len(set(means)) > 1 and all(-64 < mean < -10 for mean in means)


def test_spread_and_standard_errors():
    raster = torch.tensor([-2.0, -4.0], dtype=torch.float64)
    shifts = [1.0, 2.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    found = {"raster": raster} | {str(index): raster + shift for index, shift in enumerate(shifts)}
    cells = [float(cell) for cell in orders.summary(found)]
    assert cells[:8] == [-3.0, *(-3.0 + shift for shift in shifts)]
    # The random orders are the last five: shifts 0 ... 4. Equal shifts of all images leave no error of a difference.
    assert cells[8:] == pytest.approx([2.5**0.5, 1.0, 0.0], abs=0.005)
