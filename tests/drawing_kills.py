"""python tests/drawing_kills.py FOLDER KILLS SEED: a drawing that is killed at random moments becomes the same file."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from killed import finish, start

from ar_fast import heads, models
from ar_fast.cli import drawing
from ar_fast.tasks.checkpoints import Checkpoint

# The state is written all the time, and a kill often falls into the writing.
drawing._SECONDS, drawing._SHARE = 0.0, 0


def test(folder: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    torch.manual_seed(0)
    model = models.OffsetNADE((3, 16, 16), 48, 5, head=heads.LogisticMixture(3, 256))
    model.save(folder / "model")
    draw = ["sample", str(folder / "model"), "--size", "160x160", "--out"]
    begun = time.monotonic()
    finish(*draw, str(folder / "whole.png"))
    longest = 0.3 + 4 * (time.monotonic() - begun) / kills

    out, before, during, done, preview = folder / "b.png", 0, 0, 0, Path(f"{folder / 'b.png'}.part.png")
    checkpoint = Checkpoint(f"{out}.part.safetensors", kind="drawing")
    for _ in range(kills):
        child = start(*(["sample", "--resume", str(out)] if checkpoint.path.exists() else [*draw, str(out)]))
        time.sleep(chance.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), status
        if preview.exists():
            PIL.Image.open(preview).load()
        if out.exists():
            assert out.read_bytes() == (folder / "whole.png").read_bytes()
        stored = checkpoint.load()
        if stored is None and out.exists():
            # It was done before it was killed: another one begins.
            done, before = done + 1, 0
            out.unlink()
            continue
        after = 0 if stored is None else int(stored[0]["position"])
        assert after >= before
        during += after > before
        before = after
    finish(*(["sample", "--resume", str(out)] if checkpoint.path.exists() else [*draw, str(out)]))
    assert out.read_bytes() == (folder / "whole.png").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["b.png", "model", "whole.png"]
    assert np.asarray(PIL.Image.open(out)).std() > 10
    print(json.dumps({"kills": kills, "kills after progress": during, "done": done}))


if __name__ == "__main__":
    test(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
