"""The pages of docs/: all of them are in the site, their links lead somewhere, and their Python runs."""

import ast
import doctest
import importlib
import pkgutil
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ar_fast import _library

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))
HOOKS = runpy.run_path(str(DOCS / "site" / "hooks.py"))
# Pages whose blocks of Python run one after the other, as they stand.
RUNS = (
    "index.md",
    "choosing.md",
    "heads.md",
    "compare.md",
    "kernels.md",
    "export.md",
    "compression.md",
    "large_images.md",
)
# Modules of which the API reference has every name.
REFERENCE = ("models", "heads", "flows", "nn", "masks", "functional", "interop", "training", "orderings", "export")


def text(page):
    return (ROOT / page).read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation():
    named = re.findall(r"^ +- .*: (\S+\.md)$", text("mkdocs.yml"), re.MULTILINE)
    assert sorted(f"docs/{name}" for name in named) == PAGES


def anchors(page):
    """The anchors of a page's headings, as mkdocs and GitHub make them of plain words."""
    headings = re.findall(r"^#+ (.*)$", "".join(part for part, prose in HOOKS["prose"](text(page)) if prose), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, "README.md", "CONTRIBUTING.md", "bench/README.md"])
def test_links_lead_somewhere(page):
    for link in HOOKS["links"](text(page)):
        target = HOOKS["linked"](page, link)
        assert (ROOT / target).exists(), link
        if "#" in link and target.endswith(".md"):
            assert link.partition("#")[2] in anchors(target), link


def test_links_out_of_docs_become_links_within_the_site():
    page = "See [a](other.md#part), [b](../bench/results/x.md), [c](../ar_fast/nn.py) and [d](https://a.org).\n"
    page += "```\n[e](../ar_fast/nn.py)\n```\n"
    assert HOOKS["rewritten"]("docs/models/page.md", page.replace("../", "../../")) == (
        "See [a](other.md#part), [b](../source/bench/results/x.md), [c](../source/ar_fast/nn.py.md) and "
        "[d](https://a.org).\n```\n[e](../../ar_fast/nn.py)\n```\n"
    )
    assert HOOKS["outside"]({"docs/page.md": "[c](../ar_fast/nn.py) [d](heads.md)"}) == ["ar_fast/nn.py"]
    assert HOOKS["listing"]("ar_fast/nn.py").startswith("# ar_fast/nn.py\n\n~~~~~~python\n")


def test_formulas_of_docstrings_become_markdown():
    # The module's own import, of a library that reads Python, is of the site alone.
    source = (DOCS / "site" / "docstrings.py").read_text()
    scope = {}
    kept = [node for node in ast.parse(source).body if "griffe" not in ast.unparse(node)]
    exec(compile(ast.Module(kept, []), "docstrings.py", "exec"), scope)
    given = "First.\n\n.. math::\n    a = b \\quad\n    c\n\nSee :func:`nade`, :math:`x^2`.\n\n"
    given += ">>> 1\n1\n\nExample:\n    >>> 2\n    2"
    assert scope["in_markdown"](given) == (
        "First.\n\n$$\na = b \\quad c\n$$\n\nSee `nade`, $x^2$.\n\n```pycon\n>>> 1\n1\n```\n\n"
        "Examples:\n    >>> 2\n    2"
    )


def test_the_reference_has_every_public_name():
    named = set(re.findall(r"^::: ar_fast\.(\S+)$", "\n".join(text(page) for page in PAGES), re.MULTILINE))
    for module in REFERENCE:
        names = importlib.import_module(f"ar_fast.{module}").__all__
        absent = [name for name in names if not any(f"{each}.".startswith(f"{module}.{name}.") for each in named)]
        assert absent == [], module
    for name in named:
        assert pkgutil.resolve_name(f"ar_fast.{name}").__doc__, name


@pytest.mark.parametrize("page", RUNS)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    """A block may end with what it prints, in comments: then it prints that."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks
    scope = {}
    for block in blocks:
        exec(compile(block, page, "exec"), scope)
        printed = capsys.readouterr().out
        shown = re.search(r"((?:^# .*\n)+)\Z", block, re.MULTILINE)
        if shown:
            assert printed == re.sub(r"^# ", "", shown[1], flags=re.MULTILINE)


@pytest.mark.skipif(_library.backend == "reference", reason="some errors are the compiled ops' own")
@pytest.mark.parametrize("page", [page for page in PAGES if "```pycon" in text(page)])
def test_the_sessions_of_a_page_print_what_they_show(page):
    blocks = re.findall(r"^```pycon\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)
    session = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page, page, 0)
    assert doctest.DocTestRunner(verbose=False).run(session).failed == 0


def spoken(path):
    """The strings of a file of Python; a hole of an f-string is three dots."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_messages_that_are_quoted_are_those_of_the_code():
    messages = re.findall(r"^```text\n(.*?)\n```", text("docs/faq.md"), re.DOTALL | re.MULTILINE)
    said = "\n".join(" ".join(each.split()) for path in (ROOT / "ar_fast").rglob("*.py") for each in spoken(path))
    assert messages and [message for message in messages if message not in said] == []


@pytest.mark.full
def test_the_pictures_of_the_kernels_are_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    script = runpy.run_path(str(DOCS / "site" / "kernels.py"))
    assert script["main"](["--out", str(tmp_path)]) == 0
    drawn = sorted(capsys.readouterr().out.split())
    assert drawn == sorted(path.name for path in tmp_path.iterdir())
    assert drawn == sorted(re.findall(r"\(images/(.*?)\)", text("docs/kernels.md")))


@pytest.mark.full
@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings", "latex2mathml")),
    reason="needs the docs extra",
)
def test_the_site_builds(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    models = (tmp_path / "site" / "api" / "models" / "index.html").read_text(encoding="utf-8")
    assert 'id="ar_fast.models.NADE"' in models and "<math" in models and ".. math" not in models
    assert (tmp_path / "site" / "source" / "bench" / "results" / "cpu-rnn" / "index.html").exists()
    pages = [path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html")]
    assert not any(re.search(r"<(?:link|script|img)[^>]+(?:href|src)=\"?(?:https?:)?//", page) for page in pages)
