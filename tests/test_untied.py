"""bench.untied: the command runs on what scikit-learn ships, and counts parameters as the pages of the models do."""

import re
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="needs the bench extra")
pytest.importorskip("sklearn", reason="needs the bench extra")

# bench/ is not installed. At the end, so that an installed ar_fast comes before this folder's.
sys.path.append(str(Path(__file__).parent.parent))

from ar_fast import models
from bench import untied


def test_the_table_of_small_digits(tmp_path, capsys):
    assert untied.main(["--epochs", "1", "--rows", "300", "--threads", "1", "--out", str(tmp_path)]) == 0
    table = (tmp_path / "untied-8x8.md").read_text()
    assert table in capsys.readouterr().out
    rows = re.findall(
        r"^\| (FVSBN|ARMLP|NADE) \| (\d*) \| ([\d,]+) \| ([\d.]+) \| (-[\d.]+) \| (-[\d.]+) ±", table, re.M
    )
    assert [row[0] for row in rows] == ["FVSBN", "ARMLP", "NADE"]
    pairs = 64 * 63 // 2
    assert [int(row[2].replace(",", "")) for row in rows] == [
        pairs + 64,
        pairs * 16 + 2 * 64 * 16 + 64,
        2 * 64 * 100 + 100 + 64,
    ]
    assert all(-45 < float(nats) < -15 for row in rows for nats in row[4:])


@pytest.mark.parametrize("variables", [1, 8, 21])
def test_effective_parameters_are_those_with_a_gradient(variables):
    x = torch.rand(50, variables, dtype=torch.float64)
    for model in (models.FVSBN(variables), models.ARMLP(variables, 3), models.NADE(variables, 3)):
        model = model.double()
        model.validate_args = False
        model.log_prob(x).sum().backward()
        last = model.in_weight.shape[1] if isinstance(model, models.NADE) else 0  # the last variable feeds nothing
        count = sum(int((parameter.grad != 0).sum()) for parameter in model.parameters())
        assert untied.effective_parameters(model) == count + last


def test_a_file_that_is_missing_is_refused(tmp_path, capsys):
    assert untied.main(["--data", str(tmp_path / "no.npz")]) == 2
    assert "bench.untied: --data: must be an .npz file, got" in capsys.readouterr().err
