"""The command line: a drawing that is interrupted or killed becomes the same file, and can be seen until then."""

# ruff: noqa: E402 (what is imported later needs the extra)

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from grids import skip_module_without

skip_module_without("cli", "click", "PIL", "matplotlib", "pandas")

from command_line import invoke, refused, run
from PIL import Image
from safetensors.torch import load_file, save_file

import ar_fast.models.sampling as driver
from ar_fast import heads, models
from ar_fast.cli import drawing
from ar_fast.tasks.checkpoints import Checkpoint

FIXED_SEED = 0


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Models of images, which nobody has trained."""
    base = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    made = {
        "bits": models.OffsetNADE((6, 6), 5, 2),
        "grey": models.OffsetNADE((6, 6), 5, 2, head=heads.LogisticMixture(2, 256)),
        "colour": models.OffsetNADE((3, 6, 6), 5, 1, head=heads.LogisticMixture(2, 256)),
        "snake": models.NADE((6, 6), 5, order=torch.arange(36).reshape(6, 6).flip(0).flatten()),
        "reals": models.RNADE(36, 5),
        "rnn": models.RNN((6, 6), 5, cell="lstm"),
    }
    for name, model in made.items():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape) * 0.7)
        model.save(base / name)
    return base


@pytest.fixture
def stops(monkeypatch):
    """Makes steps small, writes the state after each one, and interrupts the one that follows so many."""
    monkeypatch.setattr(driver, "_CHUNK_POSITIONS", 7)
    monkeypatch.setattr(driver, "_CHUNK_ELEMENTS", 1)
    monkeypatch.setattr("ar_fast.models.offset_nade._STEP_ROWS", 1)
    monkeypatch.setattr("ar_fast.models.offset_nade._STEP_POSITIONS", 1)
    monkeypatch.setattr("ar_fast.models.rnn._CALL_MULTIPLY_ADDS", 1)

    def after(steps: int) -> None:
        seen = []

        def due(checkpoint):
            seen.append(checkpoint)
            if len(seen) == steps:
                os.kill(os.getpid(), signal.SIGINT)
            return True

        monkeypatch.setattr(Checkpoint, "due", property(due))

    return after


CASES = {
    "bits": ("bits", ("--size", "9x8"), "png"),
    "bits at a temperature": ("bits", ("--size", "9x8", "--temperature", 0.7, "--dtype", "float64"), "npz"),
    "grey": ("grey", ("--size", "7x9"), "png"),
    "grey side by side": ("grey", ("-n", 3), "npy"),
    "colour": ("colour", ("--size", "5x6"), "png"),
    "colours side by side": ("colour", ("-n", 2, "--seed", 7), "png"),
    "another order": ("snake", (), "png"),
    "text": ("snake", (), "txt"),
    "reals": ("reals", ("-n", 2), "csv"),
    "an RNN": ("rnn", (), "npy"),
}


@pytest.mark.parametrize("name", CASES)
def test_an_interrupt_keeps_what_is_drawn(folder, tmp_path, stops, name):
    model, options, ending = CASES[name]
    draw = ("sample", folder / model, *options, "--out")
    run(*draw, tmp_path / f"whole.{ending}")
    whole, out = (tmp_path / f"{each}.{ending}" for each in ("whole", "b"))
    pictures = model != "reals"

    stops(1)
    stopped = invoke(*draw, out)
    assert stopped.exit_code == 130, (stopped.output, stopped.exception)
    assert stopped.stderr.strip().endswith(f"ar-fast sample --resume {out} goes on from here")
    beside = [f"{out.name}.part.png"] * pictures + [f"{out.name}.part.safetensors", whole.name]
    assert names(tmp_path) == sorted(beside)
    if pictures:
        assert f"what is drawn so far: {out}.part.png" in stopped.stderr

    stops(1)
    assert invoke("sample", "--resume", out).exit_code == 130 and names(tmp_path) == sorted(beside)
    stops(100)
    assert run("sample", "--resume", out) == f"written to {out}\n"
    assert out.read_bytes() == whole.read_bytes() and names(tmp_path) == sorted([out.name, whole.name])
    assert "is complete" in run("sample", "--resume", out)


@pytest.mark.parametrize("name", ["bits", "grey", "colour", "another order"])
def test_rows_appear_as_they_are_drawn(folder, tmp_path, stops, name):
    model, options, _ = CASES[name]
    draw = ("sample", folder / model, *options, "--out")
    run(*draw, tmp_path / "whole.png")
    whole = np.asarray(Image.open(tmp_path / "whole.png"))
    stops(3)
    assert invoke(*draw, tmp_path / "b.png").exit_code == 130
    preview = np.asarray(Image.open(tmp_path / "b.png.part.png"))
    if name == "another order":
        whole, preview = whole[::-1], preview[::-1]
    position = int(load_file(tmp_path / "b.png.part.safetensors")["position"])
    # Four steps: rows of an image, or seven positions.
    assert position == (4 * whole[0].size if model in ("bits", "grey", "colour") else 28)
    np.testing.assert_array_equal(preview.flatten()[:position], whole.flatten()[:position])
    assert (preview.flatten()[position:] == 238).all()


class Killed(BaseException):
    pass


MOMENTS = {
    "after the state": (Checkpoint, "write", True),
    "after the preview": (drawing.outputs, "write_preview", True),
    "before the end": (drawing.outputs, "write_samples", False),
    "after the file": (drawing.outputs, "write_samples", True),
    "after the preview went": (drawing.outputs, "remove", True),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_it_becomes_the_same_file(folder, tmp_path, stops, monkeypatch, moment):
    draw = ("sample", folder / "grey", "--size", "9x8", "--seed", 3, "--out")
    run(*draw, tmp_path / "whole.png")
    out, command = tmp_path / "b.png", draw
    place, name, happens = MOMENTS[moment]
    original, calls = getattr(place, name), []

    def killed(*arguments):
        calls.append(arguments)
        if happens or len(calls) % 2 == 0:
            original(*arguments)
        # Every other time it is not killed, so that it comes further.
        if len(calls) % 2 == 1:
            raise Killed

    stops(10**9)
    monkeypatch.setattr(place, name, killed)
    kills = 0
    while command:
        try:
            assert invoke(*command, *(() if "--resume" in command else (out,))).exit_code == 0
            command = None
        except Killed:
            kills += 1
            command = ("sample", "--resume", out)
    assert kills >= (3 if "state" in moment or moment == "after the preview" else 1)
    assert out.read_bytes() == (tmp_path / "whole.png").read_bytes()
    assert names(tmp_path) == ["b.png", "whole.png"]


def test_a_short_drawing_writes_nothing_beside_its_file(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "write", None)
    run("sample", folder / "bits", "-n", 50, "--out", tmp_path / "b.png")
    assert names(tmp_path) == ["b.png"]


def test_too_many_for_one_block_are_drawn_at_once(folder, tmp_path, monkeypatch):
    run("sample", folder / "snake", "-n", 50, "--out", tmp_path / "a.npy")
    monkeypatch.setattr(driver, "_BLOCK_ELEMENTS", 60)
    monkeypatch.setattr(drawing, "to_file", None)
    run("sample", folder / "snake", "-n", 50, "--out", tmp_path / "b.npy")
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.fixture
def part(folder, tmp_path, stops) -> Path:
    """A file whose drawing was interrupted."""
    stops(3)
    assert invoke("sample", folder / "bits", "--size", "9x8", "--out", tmp_path / "b.png").exit_code == 130
    stops(10**9)
    return tmp_path / "b.png"


def rewritten(part: Path, values=None, tensors=None, **metadata: str) -> None:
    """The state with other values."""
    stored = Checkpoint(f"{part}.part.safetensors", kind="drawing").load()
    if not isinstance(values, str):
        values = json.dumps({**stored[1], **(values or {})})
    metadata = {"format": "ar_fast.drawing 1", "values": values} | metadata
    save_file({**stored[0], **(tensors or {})}, f"{part}.part.safetensors", metadata)


def test_a_drawing_that_was_interrupted_is_not_begun_anew(folder, part):
    before = {path.name: path.read_bytes() for path in part.parent.iterdir()}
    message = refused("sample", folder / "bits", "--out", part)
    assert f"{part} was being drawn, and ar-fast sample --resume {part} goes on; to begin anew delete" in message
    assert {path.name: path.read_bytes() for path in part.parent.iterdir()} == before


WRONG = {
    "another format": ({"format": "ar_fast.checkpoint 1"}, "its format is 'ar_fast.checkpoint 1'"),
    "no JSON": ({"values": "{"}, "must be the state of a drawing, got"),
    "JSON of something else": ({"values": "[1]"}, "must be of a drawing that was interrupted: it must have run, count"),
    "a count of the wrong type": ({"values": {"count": "1"}}, "count must be int, got '1'"),
    "an unknown dtype": ({"values": {"dtype": "int8"}}, "dtype must be one of float32"),
    "no such model": ({"values": {"run": "nowhere"}}, "got nowhere, which is no folder"),
    "another size": ({"values": {"size": "8x8"}}, r"must be torch.uint8 of shape (1, 64)"),
    "another seed": ({"values": {"seed": 5}}, "seed must be 5, got a state with 0"),
    "a position outside": ({"tensors": {"position": torch.tensor(999)}}, "position must be in 0 ... 72, got 999"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_state_is_one_line(part, name):
    change, says = WRONG[name]
    rewritten(part, **change)
    before = names(part.parent)
    assert says in refused("sample", "--resume", part)
    assert names(part.parent) == before


def test_what_cannot_be_resumed(folder, part, tmp_path):
    assert "there is no" in refused("sample", "--resume", tmp_path / "no.png")
    assert "a drawing goes on as it was begun, got 'seed'" in refused("sample", "--resume", part, "--seed", 3)
    assert "got 'run'" in refused("sample", folder / "bits", "--resume", part)
    assert "RUN must be given, or --resume FILE" in refused("sample", "--out", tmp_path / "a.png")
    torn = tmp_path / "b.png.part.safetensors"
    torn.write_bytes(torn.read_bytes()[:100])
    assert "must be the state of a drawing" in refused("sample", "--resume", part)


def test_a_model_that_was_trained_on_is_refused(folder, tmp_path, stops):
    model = models.load(folder / "bits")
    model.save(tmp_path / "model")
    stops(2)
    assert invoke("sample", tmp_path / "model", "--out", tmp_path / "b.png").exit_code == 130
    with torch.no_grad():
        model.out_bias.add_(0.5)
    model.save(tmp_path / "model")
    assert "must be of a model with these weights" in refused("sample", "--resume", tmp_path / "b.png")


def test_a_full_disk_keeps_the_last_state(folder, tmp_path, stops, monkeypatch):
    run("sample", folder / "bits", "--size", "9x8", "--out", tmp_path / "whole.png")
    stops(10**9)
    fsync, calls = os.fsync, []

    def full(number):
        calls.append(number)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        fsync(number)

    monkeypatch.setattr("ar_fast.tasks.checkpoints.os.fsync", full)
    out = tmp_path / "b.png"
    stopped = invoke("sample", folder / "bits", "--size", "9x8", "--out", out)
    line = stopped.stderr.splitlines()[-1]
    assert stopped.exit_code == 2 and "No space left on device" in line
    assert line.endswith(f"ar-fast sample --resume {out} goes on from here")
    assert int(load_file(tmp_path / "b.png.part.safetensors")["position"]) == 3 * 8
    run("sample", "--resume", out)
    assert out.read_bytes() == (tmp_path / "whole.png").read_bytes() and names(tmp_path) == ["b.png", "whole.png"]


_GROWTH = """
import sys
from pathlib import Path
import click.testing
import torch
from ar_fast import heads, models
from ar_fast.cli.__main__ import main
torch.set_num_threads(1)
def in_use(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
def draw(size):
    arguments = ["sample", "model", "--size", f"{size}x{size}", "--out", f"{size}.png"]
    assert click.testing.CliRunner().invoke(main, arguments).exit_code == 0
channels = int(sys.argv[1])
shape = (8, 8) if channels == 1 else (channels, 8, 8)
models.OffsetNADE(shape, 4, 1, head=heads.LogisticMixture(1)).save("model")
draw(256)
# From here on the peak is counted anew.
Path("/proc/self/clear_refs").write_text("5")
before, size = in_use("VmRSS"), 2048 if channels == 1 else 1024
draw(size)
print((in_use("VmHWM") - before) / (channels * size * size))
"""


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")
@pytest.mark.parametrize("channels, most", [(1, 6), (3, 20)])
def test_memory_stays_within_what_the_page_says(tmp_path, channels, most):
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH, str(channels)],
        capture_output=True, text=True, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert 1 < float(done.stdout) < most


@pytest.mark.full
def test_killed_thirty_times_it_becomes_the_same_file(tmp_path):
    script = Path(__file__).parents[1] / "drawing_kills.py"
    seed = os.environ["AR_FAST_TEST_SEED"]
    done = subprocess.run(
        [sys.executable, script, tmp_path, "30", seed],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["kills after progress"] >= 5
