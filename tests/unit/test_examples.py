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


def test_char_rnn(capsys, tmp_path):
    script = runpy.run_path(str(EXAMPLES / "char_rnn.py"))
    text = tmp_path / "text.txt"
    text.write_text("a naïve café: abc abc. " * 300, encoding="utf-8")
    bits = script["main"](str(text), epochs=8, rows=8, hidden_features=32, prompt="abc", line="abc é!", length=30)
    # Without learning anything it is 8 for each of the 25 bytes of 23 characters.
    assert bits < 4
    printed = capsys.readouterr().out
    assert f"{bits:.3f} bits per character" in printed and "\nabc" in printed
    costs = script["surprise"](script["CharRNN"]("bytes", 8), "aé€")
    # Nearly 8 bits a byte before training.
    assert len(costs) == 3 and [round(cost / 8) for cost in costs] == [1, 2, 3]
    assert script["shown"]("aé", [0.2, 12.0], False) == "aé\n09"
    coloured = script["shown"]("aé", [0.2, 12.0], True)
    assert coloured == "\033[30;48;5;46ma\033[30;48;5;196mé\033[0m"


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_sbi_two_moons(capsys):
    for name in ("sbi", "nflows"):
        pytest.importorskip(name)
    script = runpy.run_path(str(EXAMPLES / "sbi_two_moons.py"))
    assert script["main"](simulations=300, epochs=2, draws=2000, contexts=3) > 0
    printed = capsys.readouterr().out
    assert "parts accelerated" in printed and printed.count("accelerated ") == 3 and "share of draws" in printed
