"""The pictures of docs/performance.md are drawn from the results that lie beside them."""

# ruff: noqa: E402 (the path to bench/ is set first)

import sys
from pathlib import Path

import pytest
from grids import skip_module_without

skip_module_without("bench", "matplotlib", "PIL", "sklearn")

# bench/ is not installed. At the end, so that an installed ar_fast comes before this folder's.
ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from PIL import Image

from bench import plots


@pytest.mark.parametrize("name", plots.DRAWN)
def test_the_pictures_are_of_these_results(name):
    """Where it fails, `python -m bench.plots` draws them anew; the page's text may have to follow."""
    with Image.open(plots.PICTURES / f"{name}.png") as image:
        assert image.text["Results"] == plots.fingerprint(plots.DRAWN[name][2])
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert f"(images/{name}.png)" in page


def test_the_machine_of_the_page_is_theirs():
    for name in {file for _, _, files in plots.DRAWN.values() for file in files}:
        if name == "roofline.json":
            # Its own words stand beside its table, which is written with it.
            continue
        results = (plots.RESULTS / name).with_suffix(".md").read_text(encoding="utf-8")
        assert "- device: 2-core AMD EPYC\n" in results and "- threads: 2\n- torch: 2.13" in results, name
        assert "cpu_capability: AVX2" in results or name != "cpu-masked_linear.json"


def test_durations_are_read():
    assert [plots.seconds(text) for text in ("2 s", "1.58 ms", "755 µs")] == pytest.approx([2, 0.00158, 0.000755])


@pytest.mark.full
def test_they_are_drawn(tmp_path, capsys):
    assert plots.main(["--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name}.png" for name in plots.DRAWN]
    for name, (_, size, _) in plots.DRAWN.items():
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.size == tuple(round(100 * side) for side in size)
