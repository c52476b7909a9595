"""python tests/cli_kills.py FOLDER KILLS SEED: a training that is killed at random moments ends as one that is not."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import matplotlib.figure  # noqa: F401 (imported before the forks)
import numpy as np
import PIL.Image  # noqa: F401
import torch._dynamo  # noqa: F401 (an optimizer imports it)
from killed import finish, start

from ar_fast.tasks.checkpoints import Checkpoint


def steps_done(run: Path) -> tuple[int, int]:
    """Epoch and position in it that the files hold, which must be whole."""
    if (run / "config.json").exists():
        assert json.loads((run / "config.json").read_text())["format"] == "ar_fast.run"
    if (run / "metrics.jsonl").exists():
        entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [entry["epoch"] for entry in entries] == list(range(1, len(entries) + 1))
    stored = Checkpoint(run / "checkpoint.safetensors").load()
    return (0, 0) if stored is None else (stored[1]["epoch"], stored[1]["position"])


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test(folder: Path, kills: int, seed: int) -> None:
    rng, chance = np.random.default_rng(0), random.Random(seed)
    # Every bit mostly equals the one before it: there is something to learn for many epochs.
    np.savez(folder / "x.npz", x=((rng.random((400, 5, 6)) < 0.2).cumsum(2) % 2).astype(np.uint8))
    run, calm = folder / "killed", folder / "calm"
    arguments = ["train", "nade", "--data", str(folder / "x.npz"), "--hidden", "8", "--epochs", "600", "--shift", "1"]
    arguments += ["--batch-size", "40", "--patience", "600", "--average", "0.9", "--out"]
    finish(*arguments, str(calm))
    # The last line has the figures of the test part. A start takes 0.1 s; all kills together leave something to do for
    # the last run, on a fast machine too.
    seconds = json.loads((calm / "metrics.jsonl").read_text().splitlines()[-2])["seconds"]
    longest = min(0.5, 0.1 + seconds / kills)

    before, during = (0, 0), 0
    for _ in range(kills):
        begun = (run / "config.json").exists()
        interval = chance.choice(["0", "0.03"])
        goes_on = ["train", "--resume", str(run)] if begun else [*arguments, str(run)]
        child = start(*goes_on, "--checkpoint-seconds", interval)
        time.sleep(chance.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it ended before it was killed"
        after = steps_done(run)
        assert after >= before
        during += after > before
        before = after
    finish("train", "--resume", str(run))

    assert names(run) == names(calm), (names(run), names(calm))
    model = Path("model") / "model.safetensors"
    assert (run / model).read_bytes() == (calm / model).read_bytes()
    lines = [[json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()] for each in (run, calm)]
    for own in lines:
        for entry in own:
            entry.pop("seconds", None)
    assert lines[0] == lines[1]
    assert (run / "samples.png").read_bytes() == (calm / "samples.png").read_bytes()
    print(json.dumps({"kills": kills, "kills after progress": during, "stood at": before}))


if __name__ == "__main__":
    test(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
