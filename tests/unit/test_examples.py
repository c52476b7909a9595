"""The examples run as they stand."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_masked_linear(capsys):
    runpy.run_path(str(EXAMPLES / "masked_linear.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "plan='nested'" in printed
    assert float(printed.split("mask): ")[1].split()[0]) < 1e-4
    assert printed.strip().endswith("masked weight: 0.0")


@pytest.mark.full
def test_train_nade(capsys):
    pytest.importorskip("sklearn", reason="needs the demo extra")
    nats = runpy.run_path(str(EXAMPLES / "train_nade.py"))["main"](epochs=3)
    # Independent pixels give about -25.
    assert nats > -23
    drawn = capsys.readouterr().out.splitlines()[-8:]
    assert all(len(line) == 8 and set(line) <= {".", "#"} for line in drawn)
