"""A training that goes on from a checkpoint: the same parameters and figures, bit for bit, for every kind of model."""

import copy

import pytest
import torch
from safetensors.torch import save_file

from ar_fast import models
from ar_fast.tasks.checkpoints import Checkpoint
from ar_fast.tasks.training import Settings, Split, Text, train

EPOCHS, STEPS = 3, 4


def events() -> Split:
    x = torch.rand(70, 3, 4, generator=torch.Generator().manual_seed(0)).lt(0.4).float()
    return Split(x[:50], x[50:60], x[60:])


def text() -> Text:
    tokens = models.Vocabulary("ab c").encode("ab abc cab " * 60)
    return Text(tokens[:500], tokens[500:580], tokens[580:], chunk=8)


CASES = {
    "nade": (lambda: models.NADE((3, 4), 5), events, {"shift": 1, "average": 0.9, "clip": 0.5}),
    "deep_nade": (lambda: models.DeepNADE((3, 4), [8]), events, {"decay_biases": False, "warmup": 3}),
    "made_with_masks": (lambda: models.MADE((3, 4), [9], degrees="random", n_masks=3, n_orders=2), events, {}),
    "rnn_with_dropout": (lambda: models.RNN((3, 4), 4, num_layers=2, dropout=0.5), events, {}),
    "char_rnn": (lambda: models.CharRNN("ab c", 5, "lstm", 2, 0.3), text, {}),
}


class Killed(Exception):
    pass


class KilledEveryFewSteps(Checkpoint):
    """The process ends after some steps; only what the file holds is left."""

    steps = 0

    @property
    def due(self):
        self.steps += 1
        return True

    def write(self, tensors, values):
        super().write(tensors, values)
        if self.steps % 3 == 0 and values["epoch"] <= EPOCHS:
            raise Killed


def figures(result) -> tuple:
    rows = [{key: value for key, value in entry.items() if key != "seconds"} for entry in result.history]
    return rows, result.best_epoch, result.stopped_early


@pytest.mark.parametrize("name", CASES)
def test_it_goes_on_bit_for_bit(name, tmp_path):
    make, data, own = CASES[name]
    settings = Settings(epochs=EPOCHS, batch_size=13 if name != "char_rnn" else 10, **own)
    torch.manual_seed(1)
    model = make()
    again, before = copy.deepcopy(model), torch.get_rng_state()
    expected = train(model, data(), settings, progress=False)
    assert expected.history[-1]["train"] > expected.history[0]["train"]

    torch.set_rng_state(before)
    kills, result, checkpoint = 0, None, KilledEveryFewSteps(tmp_path / "state.safetensors", 0.0)
    while result is None:
        try:
            result = train(again, data(), settings, progress=False, checkpoint=checkpoint)
        except Killed:
            kills += 1
            # Nothing of the process is left.
            torch.manual_seed(1000 + kills)
            again = make()
    assert kills >= 3
    assert figures(result) == figures(expected)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_a_finished_training_is_returned_as_it_ended(tmp_path):
    model, checkpoint = models.NADE((3, 4), 5), Checkpoint(tmp_path / "state.safetensors")
    settings = Settings(epochs=2)
    first = train(model, events(), settings, progress=False, checkpoint=checkpoint)
    other = models.NADE((3, 4), 5)
    assert train(other, events(), settings, progress=False, checkpoint=checkpoint) == first
    assert torch.equal(other.in_weight, model.in_weight)


def test_it_stops_between_two_steps_when_told_to(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.safetensors", seconds=1e6)
    checkpoint.stop = True
    with pytest.raises(KeyboardInterrupt):
        train(models.NADE((3, 4), 5), events(), Settings(epochs=9, batch_size=8), progress=False, checkpoint=checkpoint)
    assert checkpoint.load()[1]["position"] == 1


def test_another_model_and_other_settings_are_refused(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.safetensors")
    train(models.NADE((3, 4), 5), events(), Settings(epochs=1), progress=False, checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"checkpoint: it must be of a model like this one, got: .*in_weight"):
        train(models.NADE((3, 4), 6), events(), Settings(epochs=1), progress=False, checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"checkpoint: settings must be .*'epochs': 1.* got .*'epochs': 2"):
        train(models.NADE((3, 4), 5), events(), Settings(epochs=2), progress=False, checkpoint=checkpoint)


def test_files_that_are_no_state_are_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"checkpoint: .*state.safetensors must be the state of a training"):
        Checkpoint(path).load()
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="its format is None"):
        Checkpoint(path).load()
    with pytest.raises(ValueError, match="seconds must be >= 0, got -1"):
        Checkpoint(path, -1)


def test_a_state_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "state.safetensors")
    checkpoint.write({"x": torch.ones(3)}, {"position": 1})

    def full(_):
        raise OSError("No space left on device")

    monkeypatch.setattr("ar_fast.tasks.checkpoints.os.fsync", full)
    with pytest.raises(OSError, match=r"checkpoint: .* could not be written: No space left"):
        checkpoint.write({"x": torch.zeros(3)}, {"position": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
    tensors, values = checkpoint.load()
    assert torch.equal(tensors["x"], torch.ones(3)) and values == {"position": 1}
