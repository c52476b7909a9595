"""bench.reproduce: the command, its training loop and its errors, on data too small to publish."""

# ruff: noqa: E402 (the path to bench/ is set first)

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="needs the bench extra")

# bench/ is not installed. At the end, so that an installed ar_fast comes before this folder's.
ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from ar_fast.models import FVSBN, MADE
from bench import reproduce

# Data drawn with a fixed seed: what training reaches on it is always the same.
FIXED_SEED = 0

ROWS, VARIABLES = (60, 30, 40), 12
TINY = reproduce.Recipe(
    dataset="a chain",
    published=-6.0,
    source="nobody",
    rows=ROWS,
    variables=VARIABLES,
    hidden_features=8,
    batch_size=16,
    epochs=30,
    learning_rate=3e-2,
    warmup=10,
    weight_decay=0.1,
    average=0.9,
)


def chain(rows: int, seed: int) -> np.ndarray:
    """Every variable equals the one before it, except one in ten: fair coins that are easy to predict together."""
    random = np.random.default_rng(seed)
    flips = random.random((rows, VARIABLES)) < 0.1
    flips[:, 0] = random.random(rows) < 0.5
    return (flips.cumsum(1) % 2).astype(np.uint8)


def arrays() -> dict[str, np.ndarray]:
    return {key: chain(rows, seed) for seed, (key, rows) in enumerate(zip(reproduce.KEYS, ROWS, strict=True))}


@pytest.fixture
def tiny(monkeypatch) -> reproduce.Recipe:
    monkeypatch.setitem(reproduce.RECIPES, "tiny", TINY)
    return TINY


@pytest.fixture
def path(tmp_path) -> Path:
    np.savez(tmp_path / "chain.npz", **arrays())
    return tmp_path / "chain.npz"


def run(path: Path, out: Path, *arguments: str) -> dict:
    assert reproduce.main(["tiny", "--data", str(path), "--out", str(out), *arguments]) == 0
    return json.loads((out / "tiny.json").read_text())


def figures(results: dict) -> tuple:
    return results["test"], [(entry["train"], entry["validation"]) for entry in results["history"]]


@pytest.mark.full
def test_command_prints_and_writes(tiny, path, tmp_path, capsys):
    results = run(path, tmp_path / "out")
    printed = capsys.readouterr().out
    assert printed.count("\nepoch ") == TINY.epochs
    nats, error = results["test"]["log_likelihood_nats"], results["test"]["standard_error_nats"]
    assert f"test {nats:.2f} ± {error:.2f} nats; published -6.00 (nobody)" in printed
    assert results["recipe"] == {**vars(TINY), "rows": list(ROWS)}
    assert {"date", "device", "threads", "torch", "ar_fast", "python"} <= set(results["environment"])
    assert [entry["epoch"] for entry in results["history"]] == list(range(1, TINY.epochs + 1))
    validation = [entry["validation"] for entry in results["history"]]
    assert results["validation_nats"] == max(validation) == validation[results["kept_epoch"] - 1]
    assert results["seconds"] >= results["history"][-1]["seconds"]
    picture = (tmp_path / "out" / "tiny.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 60_000


@pytest.mark.full
def test_training_beats_independent_variables_and_keeps_the_best_epoch(path):
    data = reproduce.load(path, TINY)
    # Enough to overfit 60 rows.
    recipe = replace(TINY, epochs=60, learning_rate=0.1, weight_decay=0.0, hidden_features=64)
    kept, history = reproduce.train(reproduce.make_model(recipe, data.train), data, recipe)
    mean = (data.train.double().sum(0) + 1) / (ROWS[0] + 2)
    independent = torch.distributions.Bernoulli(mean).log_prob(data.test.double()).sum(1).mean().item()
    assert reproduce.log_likelihoods(kept, data.test).mean().item() > independent + 1
    validation = [entry["validation"] for entry in history]
    assert validation[-1] < max(validation) - 0.1
    assert reproduce.log_likelihoods(kept, data.validation).mean().item() == pytest.approx(max(validation), abs=1e-6)


def test_model_starts_at_the_means(path):
    data = reproduce.load(path, TINY)
    model = reproduce.make_model(TINY, data.train)
    expected = data.train.double().mean(0)
    torch.testing.assert_close(model.out_bias.sigmoid().double(), expected, atol=1e-3, rtol=0)


def test_fvsbn_is_trained_without_hidden_features(path):
    data = reproduce.load(path, TINY)
    recipe = replace(TINY, hidden_features=None, learning_rate=0.1)
    model = reproduce.make_model(recipe, data.train)
    assert type(model) is FVSBN
    # Stored by place: the last variable comes first.
    torch.testing.assert_close(model.bias.sigmoid().double().flip(0), data.train.double().mean(0), atol=1e-3, rtol=0)
    before = reproduce.log_likelihoods(model, data.test).mean().item()
    kept, _ = reproduce.train(model, data, recipe)
    assert reproduce.log_likelihoods(kept, data.test).mean().item() > before + 1


def test_a_made_is_trained_with_a_tuple_of_hidden_features(path):
    data = reproduce.load(path, TINY)
    recipe = replace(TINY, hidden_features=(24, 16), learning_rate=0.05)
    model = reproduce.make_model(recipe, data.train)
    assert type(model) is MADE and model.hidden_features == [24, 16]
    before = reproduce.log_likelihoods(model, data.test).mean().item()
    kept, _ = reproduce.train(model, data, recipe)
    assert reproduce.log_likelihoods(kept, data.test).mean().item() > before + 1


def test_a_made_with_masks_takes_the_next_in_each_batch_and_is_judged_by_the_mean_of_all(path, monkeypatch):
    data = reproduce.load(path, TINY)
    recipe = replace(TINY, hidden_features=(24,), learning_rate=0.05, epochs=10, direct=True, masks=3)
    model = reproduce.make_model(recipe, data.train)
    assert (model.n_masks, model.n_orders) == (3, 3) and model.direct is not None
    members = torch.stack([model.with_mask(index).log_prob(data.test) for index in range(3)]).double()
    expected = members.logsumexp(0) - torch.tensor(3.0).double().log()
    torch.testing.assert_close(reproduce.log_likelihoods(model, data.test), expected, atol=1e-5, rtol=0)
    before = reproduce.log_likelihoods(model, data.test).mean().item()
    used, following = [], MADE.next_mask
    monkeypatch.setattr(MADE, "next_mask", lambda model: used.append(following(model).mask_index))
    kept, _ = reproduce.train(model, data, recipe)
    # 60 rows in batches of 16 are four steps an epoch.
    assert used == [step % 3 for step in range(1, 41)]
    assert reproduce.log_likelihoods(kept, data.test).mean().item() > before + 1


@pytest.mark.full
def test_an_orderless_model_is_judged_in_ensembles_of_orderings(tiny, path, tmp_path, capsys, monkeypatch):
    recipe = replace(TINY, epochs=60, ensembles={1: -6.0, 4: -5.9})
    monkeypatch.setitem(reproduce.RECIPES, "tiny", recipe)
    results = run(path, tmp_path / "out")
    printed = capsys.readouterr().out
    assert set(results["ensembles"]) == {"1", "4"} and results["test"] == results["ensembles"]["1"]
    four = results["ensembles"]["4"]["log_likelihood_nats"]
    assert f"test, 4 orderings, {four:.2f} ± " in printed and "published -5.90 (nobody)" in printed
    data = reproduce.load(path, recipe)
    torch.manual_seed(0)
    model = reproduce.make_model(recipe, data.train)
    assert torch.equal(model.order, reproduce.orderings.random(VARIABLES, seed=0))
    members = [model.in_order(reproduce.orderings.random(VARIABLES, seed)).log_prob(data.test) for seed in range(4)]
    of_four = torch.stack(members).double().logsumexp(0) - torch.tensor(4.0).double().log()
    torch.testing.assert_close(reproduce.ensemble_log_likelihoods(model, data.test, recipe)[4], of_four)


@pytest.mark.full
def test_same_seed_same_figures(tiny, path, tmp_path):
    first, again = (figures(run(path, tmp_path, "--seed", "3")) for _ in range(2))
    assert first == again
    assert figures(run(path, tmp_path)) != first


def refuse(path: Path, capsys) -> str:
    assert reproduce.main(["tiny", "--data", str(path), "--out", str(path.parent / "out")]) == 2
    assert not (path.parent / "out").exists()
    return capsys.readouterr().err


def test_missing_file_is_refused(tiny, tmp_path, capsys):
    assert f"--data: must be an .npz file, got {tmp_path / 'no.npz'}, which is no file" in refuse(
        tmp_path / "no.npz", capsys
    )
    assert "which is no file" in refuse(tmp_path, capsys)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_file_of_something_else_is_refused(tiny, tmp_path, capsys, content):
    (tmp_path / "other.npz").write_bytes(content)
    assert "--data: must be an .npz file of plain arrays, got" in refuse(tmp_path / "other.npz", capsys)


def test_single_array_is_refused(tiny, tmp_path, capsys):
    np.save(tmp_path / "one.npy", np.ones((3, 4)))
    assert "--data: must be an .npz file of plain arrays, got" in refuse(tmp_path / "one.npy", capsys)


def test_pickled_array_is_refused(tiny, tmp_path, capsys):
    np.savez(tmp_path / "objects.npz", **{**arrays(), "test_data": np.array([{}], dtype=object)})
    assert "--data: must be an .npz file of plain arrays, got" in refuse(tmp_path / "objects.npz", capsys)


def test_missing_key_is_refused(tiny, tmp_path, capsys):
    np.savez(tmp_path / "two.npz", **{key: value for key, value in arrays().items() if key != "valid_data"})
    message = "must hold the arrays train_data, valid_data, test_data, got test_data, train_data"
    assert message in refuse(tmp_path / "two.npz", capsys)


@pytest.mark.parametrize("shape", [(30, 11), (29, 12), (30, 4, 3), (360,)])
def test_wrong_shape_is_refused(tiny, tmp_path, capsys, shape):
    np.savez(tmp_path / "shape.npz", **{**arrays(), "valid_data": np.ones(shape)})
    message = f"--data: valid_data of a chain must have shape (30, 12), got {shape}"
    assert message in refuse(tmp_path / "shape.npz", capsys)


@pytest.mark.parametrize("value", [2, -1, 0.5, float("nan")])
def test_other_values_are_refused(tiny, tmp_path, capsys, value):
    bad = arrays()["test_data"].astype(float)
    bad[7, 5] = value
    np.savez(tmp_path / "values.npz", **{**arrays(), "test_data": bad})
    message = f"--data: test_data must hold 0 and 1, got {np.float64(value)} at [7, 5]"
    assert message in refuse(tmp_path / "values.npz", capsys)


@pytest.mark.full
def test_module_runs_and_lists_the_experiments():
    done = subprocess.run(
        [sys.executable, "-m", "bench.reproduce", "--help"], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert all(name in done.stdout for name in reproduce.RECIPES)
