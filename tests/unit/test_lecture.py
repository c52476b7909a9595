"""The lecture: source, notebook and page agree, each step has its parts, and it runs."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from grids import skip_module_without

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "lecture"
SOURCE = (ROOT / "examples" / "lecture.py").read_text()
STEPS = (
    "The chain rule", "Logistic regression", "FVSBN", "A network for each variable", "NADE", "Weights by offset",
    "An autoencoder is not a model", "A variational autoencoder", "MADE", "A recurrent network", "The order",
)  # fmt: skip


@pytest.fixture
def cells():
    notebook = json.loads((ROOT / "examples" / "lecture.ipynb").read_text())
    return [cell | {"source": "".join(cell["source"])} for cell in notebook["cells"]]


def in_source(cell):
    """A cell in the percent format."""
    if cell["cell_type"] == "code":
        return f"# %%\n{cell['source']}"
    return "# %% [markdown]\n" + "\n".join(f"# {line}".rstrip() for line in cell["source"].split("\n"))


def test_the_notebook_is_that_of_the_source(cells):
    _, _, body = SOURCE.partition("# ---\n\n")
    # Two empty lines follow a cell that ends with a function.
    assert [part.strip() for part in re.split(r"(?=^# %%)", body, flags=re.M)[1:]] == [
        in_source(cell).strip() for cell in cells
    ]


def test_the_page_is_that_of_the_notebook(cells):
    build = runpy.run_path(str(FOLDER / "build.py"))
    text, pictures = build["page"]({"cells": cells})
    assert text == (FOLDER / "README.md").read_text()
    assert {name: (FOLDER / name).read_bytes() for name in pictures} == pictures
    assert sorted(path.name for path in FOLDER.glob("*.png")) == sorted(pictures)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (FOLDER / target).exists(), target


def test_each_step_has_one_formula_few_lines_one_picture_and_one_exercise(cells):
    steps = []
    for cell in cells:
        if found := re.match(r"## (\d+)\. (.*)", cell["source"]):
            steps.append((found[2], []))
            assert int(found[1]) == len(steps)
        if steps:
            steps[-1][1].append(cell)
    assert tuple(name for name, _ in steps) == STEPS
    for name, (text, code, exercise) in steps:
        assert text["source"].count("$$") == 2, name
        assert code["cell_type"] == "code" and len(code["source"].splitlines()) <= 5, name
        assert sum("image/png" in output.get("data", {}) for output in code["outputs"]) == 1, name
        assert exercise["source"].startswith("**Exercise.**"), name


def test_the_table_of_orders_is_that_of_the_benchmark():
    found = re.findall(r"^\| (\w+) \|(.*)\|$", (ROOT / "bench/results/orders-8x8.md").read_text(), re.M)
    benchmark = {name: [cell.strip() for cell in cells.split("|")] for name, cells in found if name != "model"}
    quoted = dict(re.findall(r"^# \| (\w+) \|(.*)\|$", SOURCE, re.M))
    assert sorted(quoted) == sorted(benchmark)
    for name, row in quoted.items():
        cells = [cell.strip() for cell in row.split("|")]
        given = benchmark[name]
        low, high = sorted(map(float, given[3:8]))[:: len(given[3:8]) - 1]
        assert cells == [*given[:3], f"{low:.2f} to {high:.2f}", *given[8:]], name


@pytest.mark.full
def test_it_runs(cells, capsys, monkeypatch):
    """As a plain script: what it prints agrees with the notebook, up to what another processor rounds."""
    skip_module_without("lecture", "matplotlib", "sklearn")
    import matplotlib

    monkeypatch.setattr(sys, "argv", ["lecture.py"])
    matplotlib.use("Agg")
    runpy.run_path(str(ROOT / "examples" / "lecture.py"), run_name="__main__")
    printed = capsys.readouterr().out
    kept = "".join("".join(output["text"]) for cell in cells for output in cell.get("outputs", []) if "text" in output)
    number = re.compile(r"-?\d[\d,]*\.?\d*")
    assert number.sub("#", printed) == number.sub("#", kept)
    pairs = zip(number.findall(printed), number.findall(kept), strict=True)
    for ours, theirs in pairs:
        assert float(ours.replace(",", "")) == pytest.approx(float(theirs.replace(",", "")), abs=0.7), (ours, theirs)
