"""The command line: a MADE with several sets of masks is trained in turn and used as their mixture."""

# ruff: noqa: E402 (what is imported later needs the extra)

import json

import numpy as np
import pytest
import torch
from grids import skip_module_without

skip_module_without("cli", "click", "PIL", "matplotlib")

from command_line import invoke

from ar_fast import models
from ar_fast.tasks.checkpoints import Checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("masks")
    np.savez(base / "x.npz", x=(np.random.default_rng(0).random((90, 6, 5)) < 0.3).astype(np.uint8))
    options = ("--hidden", 20, "--masks", 3, "--epochs", 2, "--batch-size", 20, "--seed", 1)
    for name, more in (("one", ()), ("two", ("--orders", 2))):
        result = invoke("train", "made", "--data", base / "x.npz", *options, *more, "--out", base / name)
        assert result.exit_code == 0, (result.stderr, result.exception)
    return base


def test_the_mixture_is_evaluated_and_drawn_from(folder, tmp_path):
    model = models.load(folder / "two" / "model")
    assert (model.n_masks, model.n_orders, model.degree_seed) == (3, 2, 1)
    mixture, x = model.ensemble(), torch.from_numpy(np.load(folder / "x.npz")["x"])
    assert invoke("evaluate", folder / "two", "--split", "all", "--out", tmp_path / "e.json").exit_code == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["nats"] == pytest.approx(mixture.log_prob(x).double().mean().item(), abs=1e-6)
    assert invoke("anomaly", folder / "two", "--out", tmp_path / "s.npz").exit_code == 0
    nats = np.load(tmp_path / "s.npz")["nats"]
    np.testing.assert_allclose(nats, mixture.log_prob(x).detach(), atol=1e-5)
    assert invoke("sample", folder / "two", "-n", 9, "--seed", 4, "--out", tmp_path / "s.npy").exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), mixture.sample(9, seed=4).numpy())
    assert invoke("info", folder / "two").exit_code == 0


def test_one_order_completes_what_comes_after_the_known_part(folder, tmp_path):
    given = ("complete", folder / "one", folder / "x.npz", "--seed", 2, "--out", tmp_path / "c.npy")
    assert invoke(*given).exit_code == 0
    x, drawn = torch.from_numpy(np.load(folder / "x.npz")["x"]), np.load(tmp_path / "c.npy")
    np.testing.assert_array_equal(drawn[:, :3], x[:, :3])
    known = torch.zeros(6, 5, dtype=torch.bool)
    known[:3] = True
    first = models.load(folder / "one" / "model").ensemble().sample(1, given=x[0], known=known, seed=2)
    np.testing.assert_array_equal(drawn[0], first[0].numpy())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train made --data {f}/x.npz --orders 2 --out {f}/run", "at most --masks, 1, got 2"),
        ("train made --data {f}/x.npz --masks 2 --orders 3 --out {f}/run", "n_orders must be at most n_masks = 2"),
        ("train nade --data {f}/x.npz --masks 2 --out {f}/run", "nade has no such option"),
        ("sample {f}/two --frames {f}/f.gif", "has no conditionals to show"),
        ("anomaly {f}/two --per-variable --out {f}/s.csv", "nor a mixture has a term for each variable"),
        ("complete {f}/two {f}/x.npz --clamp", "fixes no variables"),
        ("complete {f}/two {f}/x.npz", "must be a prefix"),
    ],
)
def test_what_a_mixture_refuses(folder, line, says):
    result = invoke(*line.format(f=folder).split())
    assert result.exit_code == 2 and says in result.stderr and not (folder / "run").exists()


def test_an_interrupted_training_goes_on_with_its_set_of_masks(folder, tmp_path, monkeypatch):
    options = ("--hidden", 20, "--masks", 3, "--orders", 2, "--epochs", 2, "--batch-size", 20, "--seed", 1)
    due, asked = Checkpoint.due, []

    def interrupted(checkpoint):
        asked.append(checkpoint)
        checkpoint.stop = len(asked) == 2
        return checkpoint.stop

    monkeypatch.setattr(Checkpoint, "due", property(interrupted))
    assert invoke("train", "made", "--data", folder / "x.npz", *options, "--out", tmp_path / "run").exit_code == 130
    monkeypatch.setattr(Checkpoint, "due", due)
    assert invoke("train", "--resume", tmp_path / "run").exit_code == 0
    own, calm = (path / "model" / "model.safetensors" for path in (tmp_path / "run", folder / "two"))
    assert own.read_bytes() == calm.read_bytes()
