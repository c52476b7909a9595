"""bench.untied: the command runs on what scikit-learn ships, and counts parameters as the pages of the models do."""

import re
import sys
from pathlib import Path

from grids import skip_module_without

skip_module_without("bench", "matplotlib", "sklearn")

# bench/ is not installed. At the end, so that an installed ar_fast comes before this folder's.
sys.path.append(str(Path(__file__).parents[2]))

from bench import untied  # noqa: E402 (the path to bench/ is set first)


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


def test_a_file_that_is_missing_is_refused(tmp_path, capsys):
    assert untied.main(["--data", str(tmp_path / "no.npz")]) == 2
    assert "bench.untied: --data: must be an .npz file, got" in capsys.readouterr().err
