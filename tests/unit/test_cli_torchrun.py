"""ar-fast under torchrun: two processes train one model, are stopped, go on, evaluate it and draw from it."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("click")
pytestmark = pytest.mark.full

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PROGRAM = ["-m", "ar_fast", "train"]


def options(folder, out):
    given = ["nade", "--data", folder / "x.npz", "--hidden", 8, "--batch-size", 16, "--patience", 300]
    return [str(each) for each in [*given, "--epochs", 300, "--average", 0.9, "--threads", 1, "--out", out]]


def ended(command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def history(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
    return lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("torchrun"), np.random.default_rng(0)
    np.savez(folder / "x.npz", x=((rng.random((125, 5, 6)) < 0.2).cumsum(2) % 2).astype(np.uint8))
    said = ended([*TORCHRUN, *PROGRAM, *options(folder, folder / "two")])
    # One process alone tells what happens.
    assert said.count("to train on") == said.count("written to") == 1
    return folder


def test_two_processes_train_as_one_does(folder):
    ended([sys.executable, *PROGRAM, *options(folder, folder / "one")])
    two, one = history(folder / "two"), history(folder / "one")
    assert len(two) == len(one) == 301
    for own, single in zip(two[:30], one[:30], strict=True):
        assert own["train"] == pytest.approx(single["train"], rel=1e-4)
        assert own["validation"] == pytest.approx(single["validation"], rel=1e-4)
    assert two[-1]["test"]["nats"] == pytest.approx(one[-1]["test"]["nats"], rel=0.02)
    names = [{path.name for path in (folder / each).rglob("*")} for each in ("two", "one")]
    assert names[0] == names[1]


def test_they_are_stopped_and_go_on(folder):
    stopped = folder / "stopped"
    command = [*TORCHRUN, *PROGRAM, *options(folder, stopped), "--checkpoint-seconds", "0"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (stopped / "metrics.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=120)[1]
    assert running.returncode != 0 and "goes on from here" in said
    assert not (stopped / "model").exists() and (stopped / "checkpoint.safetensors").is_file()
    ended([*TORCHRUN, *PROGRAM, "--resume", str(stopped)])
    assert history(stopped) == history(folder / "two")
    found, expected = (load_file(each / "model/model.safetensors") for each in (stopped, folder / "two"))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_two_processes_evaluate_and_draw_as_one_does(folder):
    run, one, two = str(folder / "two"), folder / "one-alone", folder / "both"
    for launch, out in (([sys.executable], one), (TORCHRUN, two)):
        out.mkdir()
        begin = [*launch, "-m", "ar_fast"]
        said = ended([*begin, "evaluate", run, "--split", "all", "--threads", "1", "--out", str(out / "e.json")])
        assert said.count("nats") == 1
        said = ended([*begin, "sample", run, "-n", "7", "--seed", "3", "--threads", "1", "--out", str(out / "s.npz")])
        assert said.count("written to") == 1
        ended([*begin, "sample", run, "-n", "1", "--seed", "3", "--threads", "1", "--out", str(out / "single.npz")])
    found, expected = (json.loads((out / "e.json").read_text()) for out in (two, one))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)
    for name in ("s.npz", "single.npz"):
        found, expected = (np.load(out / name) for out in (two, one))
        assert found.files == expected.files and all(np.array_equal(found[key], expected[key]) for key in found.files)


def test_what_is_wrong_is_said(folder):
    done = subprocess.run([*TORCHRUN, *PROGRAM, *options(folder, folder / "two")], capture_output=True, text=True)
    assert done.returncode != 0 and "--out: must be a new or empty folder" in done.stderr
