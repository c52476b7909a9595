"""The command line: files of a run that are not what they should be, and requests that fit into no memory."""

# ruff: noqa: E402 (what is imported later needs the extra)

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from grids import skip_module_without

skip_module_without("cli", "click", "PIL", "matplotlib", "pandas")

from command_line import files, invoke, refused

from ar_fast import flows, heads, models


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Trained runs of each kind, and data; no test adds a file."""
    folder = tmp_path_factory.mktemp("base")
    np.savez(folder / "bits.npz", x=(np.random.default_rng(0).random((60, 6, 5)) < 0.3).astype(np.uint8))
    np.save(folder / "none.npy", np.zeros((0, 6, 5), np.uint8))
    small = ("--data", folder / "bits.npz", "--hidden", 4, "--epochs", 1)
    assert invoke("train", "nade", *small, "--out", folder / "run").exit_code == 0
    models.OffsetNADE((6, 5), 4, 1).save(folder / "offset")
    models.OffsetNADE((3, 6, 5), 4, 1, head=heads.LogisticMixture(1)).save(folder / "colour")
    models.CharRNN("ab", 4).save(folder / "text")
    flows.MAF(4, hidden_features=[8]).save(folder / "flow")
    return folder


LINES = {
    # {b} is the folder of the fixture; and what the line says.
    "a size that fits nowhere": ("sample {b}/offset --size 99999999x99999999 --out {b}/x.png", "must fit into the mem"),
    "the same in colour": ("sample {b}/colour --size 99999999x99999999 --out {b}/x.png", "must fit into the memory"),
    "more events than fit": ("sample {b}/run -n 99999999999999 --out {b}/x.npy", "got 99999999999999 of shape (6, 5)"),
    "more completions": ("complete {b}/run {b}/bits.npz -n 999999999999 --out {b}/x.npz", "can't allocate memory"),
    "more particles": ("complete {b}/run {b}/bits.npz --keep bottom --particles 99999999999999", "can't allocate mem"),
    "no positive size": ("sample {b}/offset --size 0x4", "--size: must be positive whole numbers"),
    "a size of one number": ("sample {b}/offset --size 9", "event_shape must have the dimensions"),
    "a size of three numbers": ("sample {b}/offset --size 4x4x4", "event_shape must have the dimensions"),
    "a size for a NADE": ("sample {b}/run --size 8x8", "only offset-nade draws events of another size"),
    "a size for a flow": ("sample {b}/flow --size 8x8", "only offset-nade draws events of another size"),
    "a temperature for a flow": ("sample {b}/flow --temperature 2 --out {b}/x.npy", "a flow has none, got 2.0"),
    "a device that is no machine": (
        "sample {b}/run --device meta",
        "--device: must be cpu, cuda or cuda:0, got 'meta'",
    ),
    "too many threads": ("sample {b}/run --threads 100000", "100000 is not in the range 1<=x<=1024"),
    "no event to complete": ("complete {b}/run {b}/none.npy --out {b}/x.npz", "GIVEN: must have an event to complete"),
    "a file for the demo's folder": ("demo --data digits --out {b}/bits.npz", "must be a folder"),
    "a file for the comparison's folder": ("compare --out {b}/bits.npz", "must be a folder"),
    "no folder for the comparison": ("compare --out /proc/x", "/proc/x"),
    "a device that the demo has not": ("demo --device tpu --out {b}/x", "--device: must be cpu, cuda or cuda:0"),
    "a file in place of a run": ("sample {b}/bits.npz", "which is no folder"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_wrong_request_is_one_line_and_writes_nothing(base, name):
    line, says = LINES[name]
    before = files(base)
    assert says in refused(*line.format(b=base).split(" "))
    assert files(base) == before


def wrote(name: str, content: bytes):
    return lambda run: (run / name).write_bytes(content)


def changed(name: str, **values: object):
    """A JSON file of which some values are others; a dict changes a part of the value that is there."""

    def change(run: Path) -> None:
        config = json.loads((run / name).read_text())
        for key, value in values.items():
            config[key] = config[key] | value if isinstance(value, dict) and value else value
        (run / name).write_text(json.dumps(config))

    return change


def held_out(array: np.ndarray):
    return lambda run: np.save(run / "held_out.npy", array)


def test_a_run_without_figures_is_described(base, tmp_path):
    shutil.copytree(base / "run", tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert json.loads(invoke("info", tmp_path / "run").stdout)["model"] == "NADE"


SAMPLE, ANOMALY, INFO, RESUME = (
    "sample {r} --out {r}.npz",
    "anomaly {r} --out {r}.csv",
    "info {r}",
    "train --resume {r}",
)


def unfinished(**values: object):
    """A training that was interrupted, and its config.json then changed."""

    def change(run: Path) -> None:
        shutil.rmtree(run / "model")
        changed("config.json", **values)(run)

    return change


BROKEN = {
    # What happened to the run; the command; and what its line says.
    "a list for its config": (wrote("config.json", b"[1]"), SAMPLE, "whose config.json is that of something else"),
    "no JSON": (wrote("config.json", b"{"), SAMPLE, "must be JSON"),
    "no UTF-8": (wrote("config.json", bytes(range(128, 256))), SAMPLE, "must be JSON"),
    "an unknown model": (changed("model/config.json", model="Foo"), SAMPLE, "load: model must be one of"),
    "a flow's name": (changed("model/config.json", model="MAF"), SAMPLE, "load:"),
    "a text's name": (changed("model/config.json", model="CharRNN"), SAMPLE, "load:"),
    "no head": (changed("model/config.json", config={"head": 3}), SAMPLE, "must describe a NADE"),
    "another dtype": (changed("model/config.json", config={"dtype": "int8"}), SAMPLE, "must describe a NADE"),
    "a model of texts": (lambda run: models.CharRNN("ab", 4).save(run / "model"), SAMPLE, "got a CharRNN of other"),
    "a flow": (lambda run: flows.MAF(4, hidden_features=[8]).save(run / "model"), SAMPLE, "got a MAF of other events"),
    "another event": (changed("config.json", values={"event_shape": [3, 3]}), SAMPLE, "must be a model of 3 x 3"),
    "empty weights": (wrote("model/model.safetensors", b""), SAMPLE, "must be a whole safetensors file"),
    "pickled weights": (
        lambda run: torch.save({"x": torch.zeros(2)}, run / "model" / "model.safetensors"),
        SAMPLE,
        "must be a whole safetensors file",
    ),
    "no model to go on with": (unfinished(model=3), RESUME, "model must be dict in"),
    "a model of no name": (unfinished(model={"name": "no"}), RESUME, "must have a model's name, got another"),
    "no source": (unfinished(data={"source": None}), RESUME, "must have the source of the data, got another"),
    "other settings": (unfinished(settings={"x": 1}), RESUME, "must have settings that train takes, got another"),
    "no dtype": (unfinished(dtype="x"), RESUME, "must have a dtype of float32"),
    "no threads": (unfinished(threads="x"), RESUME, "threads must be int in"),
    "no values": (unfinished(values={"kind": "no"}), RESUME, "must be those that training wrote"),
    "metrics that are no JSON": (wrote("metrics.jsonl", b"{"), INFO, "metrics.jsonl must have JSON in its lines"),
    "scores that are no numbers": (held_out(np.array(["a", "b"])), ANOMALY, "must have the scores of held-out events"),
    "scores in a table": (held_out(np.zeros((3, 3))), ANOMALY, "must have the scores of held-out events"),
    "scores that are no array": (wrote("held_out.npy", b"x"), ANOMALY, "must have the scores of held-out events"),
    "scores of no length": (wrote("held_out.npy", b""), ANOMALY, "must have the scores of held-out events"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_is_one_line_and_writes_nothing(base, tmp_path, name):
    change, command, says = BROKEN[name]
    run = tmp_path / "runs" / "run"
    shutil.copytree(base / "run", run)
    change(run)
    before = files(tmp_path)
    assert says in refused(*command.format(r=run).split(" "))
    assert files(tmp_path) == before
