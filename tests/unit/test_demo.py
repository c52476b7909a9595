"""The demo: its data, its pictures, and a whole run on small settings."""

# ruff: noqa: E402 (the demo is imported where its extra is installed)

import json

import numpy as np
import pytest
import torch
from grids import skip_module_without

skip_module_without("demo", "sklearn")
click_testing = pytest.importorskip("click.testing", reason="needs the demo extra")

import ar_fast.models
from ar_fast.cli import data, pictures
from ar_fast.cli.beside_torch import compare_training, plain_model
from ar_fast.cli.demo import main
from ar_fast.training import Settings, log_likelihoods, shift, train


@pytest.fixture
def small_images() -> data.Images:
    images = data.load_images("digits")
    return data.Images(images.train[:200], images.validation, images.test, "", "")


def run(tmp_path, *arguments: str) -> tuple[str, dict]:
    result = click_testing.CliRunner().invoke(main, ["--out", str(tmp_path), *arguments])
    assert result.exit_code == 0, result.output
    return result.output, json.loads((tmp_path / "metrics.json").read_text())


@pytest.mark.full
@pytest.mark.parametrize("name", ["nade", "made"])
def test_demo_writes_everything(tmp_path, name):
    output, metrics = run(tmp_path, "--data", "digits", "--model", name, "--hidden", "24", "--epochs", "4")
    for file in ("samples.png", "completions.png", "learning_curve.png"):
        assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")
    assert metrics["training_step_seconds"]["loss_difference"] < 1e-4
    assert len(metrics["training_step_seconds"]["losses_plain"]) == 20
    nats, baseline = metrics["test"]["log_likelihood_nats"], metrics["independent_pixels"]["log_likelihood_nats"]
    assert nats > baseline
    assert metrics["test"]["bits_per_dimension"] == pytest.approx(-nats / 64 / np.log(2))
    assert "training step, batch 128" in output and f"{nats:.2f}" in output

    model = ar_fast.models.load(tmp_path / "model")
    test = data.load_images("digits", seed=0).test
    assert log_likelihoods(model, test).mean().item() == pytest.approx(nats, abs=1e-4)


@pytest.mark.full
def test_demo_reads_npz(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (120, 5, 4))
    np.savez(tmp_path / "images.npz", images=images)
    _, metrics = run(tmp_path, "--data", str(tmp_path / "images.npz"), "--hidden", "3", "--epochs", "1")
    assert metrics["data"]["shape"] == [5, 4]
    assert (metrics["data"]["train"], metrics["data"]["validation"], metrics["data"]["test"]) == (96, 12, 12)


@pytest.mark.parametrize("source", ["letters", "missing.npz"])
def test_demo_names_the_wrong_argument(tmp_path, source):
    result = click_testing.CliRunner().invoke(main, ["--data", source, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "--data" in result.output and source in result.output


def test_split_depends_on_the_seed_only_and_loses_nothing():
    first, again, other = (data.load_images("digits", seed) for seed in (1, 1, 2))
    assert torch.equal(first.test, again.test) and not torch.equal(first.test, other.test)
    whole = [torch.cat([part.train, part.validation, part.test]).flatten(1) for part in (first, other)]
    assert sorted(map(tuple, whole[0].tolist())) == sorted(map(tuple, whole[1].tolist()))


def test_npz_with_its_own_split_keeps_it(tmp_path):
    parts = {name: np.full((2, 4), value) for name, value in (("train_data", 1), ("valid_data", 0), ("test_data", 1))}
    np.savez(tmp_path / "split.npz", labels=np.arange(3), **parts)
    images = data.load_images(str(tmp_path / "split.npz"))
    assert images.binarization == "binary as given"
    assert images.shape == (2, 2) and not images.validation.any() and images.test.all()


def test_npz_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", one=np.ones((3, 4)), two=np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"must hold one array .* got \['one', 'two'\]"):
        data.load_images(str(tmp_path / "other.npz"))


@pytest.mark.parametrize(("bad", "rule"), [(np.array([[np.nan, 1.0]]), "NaN"), (np.array([[-1, 1]]), "negative")])
def test_binarize_refuses(bad, rule):
    with pytest.raises(ValueError, match=rule):
        data.binarize(bad)


def test_shift_moves_and_fills_with_zeros():
    image = torch.zeros(300, 6, 5, dtype=torch.uint8)
    image[:, 2, 3] = 1
    image[:, 5, 0] = 1
    moved = shift(image, 1, torch.Generator().manual_seed(0))
    places = {tuple(place[1:]) for place in moved[:, :4, 1:].nonzero().tolist()}
    assert places == {(row, column - 1) for row in (1, 2, 3) for column in (2, 3, 4)}
    # The pixel in the corner leaves the image in five of the nine moves.
    assert set(moved.sum((1, 2)).tolist()) == {1, 2}
    assert shift(image, 0, torch.Generator()) is image


def test_independent_pixels_equals_its_definition(small_images):
    train, test = small_images.train.double().flatten(1), small_images.test.double().flatten(1)
    probability = (train.sum(0) + 1) / (len(train) + 2)
    expected = torch.distributions.Bernoulli(probability).log_prob(test).sum(1).mean()
    assert data.independent_pixels(small_images) == pytest.approx(expected.item())


def test_grid_places_images_in_lines():
    images = torch.zeros(3, 2, 2)
    images[2] = 1
    picture = pictures.grid(images, 2, zoom=1, gap=1)
    assert picture.shape == (7, 7)
    assert (picture[4:6, 1:3] == 30).all() and (picture[1:3, 1:3] == 255).all() and (picture[4:6, 4:6] == 238).all()


@pytest.mark.full
def test_training_keeps_the_best_epoch_and_stops_early(small_images):
    torch.manual_seed(0)
    model = ar_fast.models.NADE((8, 8), 16)
    # A rate at which training soon gets worse.
    settings = Settings(epochs=40, learning_rate=0.5, patience=2)
    result = train(model, small_images, settings, progress=False)
    validation = [entry["validation"] for entry in result.history]
    assert result.stopped_early and len(validation) == result.best_epoch + 2
    kept = log_likelihoods(model, small_images.validation).mean().item()
    assert kept == pytest.approx(max(validation), abs=1e-4)


@pytest.mark.parametrize("name", ["nade", "made"])
def test_plain_model_is_the_same_model(small_images, name):
    model = ar_fast.models.NADE((8, 8), 12) if name == "nade" else ar_fast.models.MADE((8, 8), [12])
    plain = plain_model(model)
    torch.testing.assert_close(plain.log_prob(small_images.test), model.log_prob(small_images.test))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = compare_training(model, small_images.train, Settings(batch_size=16), steps=6, progress=False)
    assert result.loss_difference < 1e-5
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.full
@pytest.mark.parametrize("name", ["nade", "made"])
def test_plain_sampling_has_the_models_frequencies(name):
    torch.manual_seed(0)
    model = ar_fast.models.NADE(6, 5) if name == "nade" else ar_fast.models.MADE(6, [5])
    frequencies = torch.stack([plain_model(model).draw(20000).mean(0), model.sample(20000, seed=1).mean(0)])
    torch.testing.assert_close(frequencies[0], frequencies[1], atol=0.02, rtol=0)


def test_every_way_to_start_it(capsys):
    from ar_fast import demo
    from ar_fast.cli.__main__ import main as commands

    assert demo.main is main
    result = click_testing.CliRunner().invoke(commands, ["--help"])
    assert result.exit_code == 0 and {"demo", "compare"} <= set(result.output.split())
