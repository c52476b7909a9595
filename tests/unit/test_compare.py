"""ar_fast.compare: the table of several trained models, and its command."""

import math

import pytest
import torch

import ar_fast
from ar_fast import models
from ar_fast.training import Settings, Split


def pairs_of_equal_bits(count):
    """Eight bits, each twice: a model that sees the bit before halves the nats of one that does not."""
    return torch.randint(0, 2, (count, 4)).repeat_interleave(2, 1)


@pytest.fixture
def data():
    return Split(*pairs_of_equal_bits(900).split([500, 200, 200]))


@pytest.mark.full
def test_each_model_learns_and_has_its_line(data):
    given = [models.FVSBN(8), models.NADE(8, 6), models.MADE(8, [16]), models.DeepNADE(8, [16]), models.NADE(8, 3)]
    each = [Settings(12, 50, learning_rate, 0.0, shift=0) for learning_rate in (0.5, 0.1, 0.05, 0.02, 0.1)]
    table = ar_fast.compare(given, data, each, progress=False)
    assert [entry.name for entry in table] == ["FVSBN", "NADE 1", "MADE", "DeepNADE", "NADE 2"]
    assert [entry.model for entry in table] == given
    for entry in table:
        assert entry.parameters == entry.model.count_parameters()
        assert entry.test == pytest.approx(entry.model.log_prob(data.test).mean().item(), abs=1e-5)
        # 4 bits of entropy, and 8 bits without learning anything.
        assert entry.test > -6.5 * math.log(2)
        assert 0 < entry.seconds_per_epoch < 60 and 0 < entry.seconds_per_100_samples < 60
        assert entry.epochs <= 12
    lines = str(table).splitlines()
    assert len(lines) == 7 and len({len(line) for line in lines}) == 1
    assert "FVSBN" in lines[2] and f"{table[0].test:.2f} ±" in lines[2] and "36" in lines[2]


def test_names_and_one_settings_for_all(data):
    given = {"narrow": models.NADE(8, 1), "wide": models.NADE(8, 9)}
    table = ar_fast.compare(given, data, Settings(epochs=2, shift=0), progress=False)
    assert [(entry.name, entry.epochs) for entry in table] == [("narrow", 2), ("wide", 2)]


def test_errors(data):
    with pytest.raises(ValueError, match="compare: models must be one or more, got none"):
        ar_fast.compare([], data)
    with pytest.raises(ValueError, match="compare: settings must be one or one for each of 2 models, got 1"):
        ar_fast.compare([models.FVSBN(8), models.FVSBN(8)], data, [Settings()])
    with pytest.raises(ValueError, match="compare: data must have events in every part, got none in validation"):
        ar_fast.compare([models.FVSBN(8)], Split(data.train, data.test[:0], data.test))


@pytest.mark.full
def test_the_command_writes_table_and_picture(tmp_path):
    pytest.importorskip("sklearn", reason="needs the demo extra")
    click_testing = pytest.importorskip("click.testing", reason="needs the demo extra")
    from ar_fast.cli.compare import RECIPES, main

    result = click_testing.CliRunner().invoke(main, ["--epochs", "1", "--rows", "200", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    table = (tmp_path / "comparison.md").read_text()
    assert table in result.output
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == list(RECIPES)
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    result = click_testing.CliRunner().invoke(main, ["--data", "letters", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "--data" in result.output
