"""What mkdocs does beside its own work: links that lead out of docs/, and formulas.

A page may link to any file of the repository by its relative path, as it must for readers of the repository itself.
The site has no such file, and no address of a repository is known here; so each file that a page links to becomes a
page of the site under source/: Markdown as it is, other text as a listing, and a folder as a list of its names.
Formulas become MathML, which browsers show by themselves: the site loads nothing from elsewhere.
"""

import html
import os
import posixpath
import re
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs"
# Where the site has the files that are outside docs/.
SHELF = "source"
LANGUAGES = {".py": "python", ".json": "json", ".sh": "bash", ".cpp": "cpp", ".h": "cpp", ".cu": "cpp"}
FENCES = re.compile(r"^(`{3,}|~{3,}).*?^\1[ ]*$", re.DOTALL | re.MULTILINE)
LINKS = re.compile(r"(?<=\]\()([^()\s]+)(?=\))")
FORMULAS = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def prose(text: str) -> list[tuple[str, bool]]:
    """The parts of a page in their order, and of each whether it is prose, not a block of code."""
    parts, end = [], 0
    for found in FENCES.finditer(text):
        parts += [(text[end : found.start()], True), (found[0], False)]
        end = found.end()
    return [*parts, (text[end:], True)]


def links(text: str) -> list[str]:
    """The relative links of a page, without those within it."""
    found = [link for part, is_prose in prose(text) if is_prose for link in LINKS.findall(part)]
    return [link for link in found if not urlsplit(link).scheme and not link.startswith("#")]


def linked(page: str, link: str) -> str:
    """The path, from the top of the repository, that a link on the page at another such path leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), urlsplit(link).path))


def at(path: str) -> str:
    """Where the site's sources have a file of the repository."""
    if path.startswith(f"{DOCS}/"):
        return path.removeprefix(f"{DOCS}/")
    return f"{SHELF}/{path}" if path.endswith((".md", ".ipynb", ".png")) else f"{SHELF}/{path}.md"


def of(address: str) -> str:
    """The file of the repository at an address of the site's sources: the inverse of ``at``."""
    if not address.startswith(f"{SHELF}/"):
        return f"{DOCS}/{address}"
    path = address.removeprefix(f"{SHELF}/")
    return path if (ROOT / path).exists() else path.removesuffix(".md")


def listing(path: str) -> str:
    """A file or a folder of the repository as a page."""
    file = ROOT / path
    if path.endswith(".md"):
        return file.read_text(encoding="utf-8")
    if file.is_dir():
        names = sorted(each.name for each in file.iterdir() if not each.name.startswith((".", "__")))
        return f"# {path}\n\n" + "\n".join(f"- `{name}`" for name in names) + "\n"
    # Six of them, since a file may have a block of code of its own.
    return f"# {path}\n\n~~~~~~{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text(encoding='utf-8')}\n~~~~~~\n"


def outside(pages: dict[str, str]) -> list[str]:
    """All files outside docs/ that these pages link to, and those that they lead to in turn."""
    found, waiting = [], list(pages.items())
    while waiting:
        page, text = waiting.pop()
        for path in dict.fromkeys(linked(page, link) for link in links(text)):
            if path.startswith(f"{DOCS}/") or path in found or not (ROOT / path).exists():
                continue
            found.append(path)
            # Results and the README of a folder belong to the site; the repository's own front page does not.
            if path.endswith(".md"):
                waiting.append((path, listing(path)))
    return sorted(found)


def rewritten(page: str, text: str) -> str:
    """The text of a page of the repository with its links as the site has them."""
    here = posixpath.dirname(at(page))

    def link(found: re.Match) -> str:
        parts = urlsplit(found[0])
        if parts.scheme or not parts.path:
            return found[0]
        target = posixpath.relpath(at(linked(page, found[0])), here or ".")
        return target + (f"#{parts.fragment}" if parts.fragment else "")

    return "".join(LINKS.sub(link, part) if is_prose else part for part, is_prose in prose(text))


def on_files(files, config):
    from mkdocs.structure.files import File

    pages = {of(file.src_uri): file.content_string for file in files.documentation_pages()}
    for path in outside(pages):
        source = {"content": listing(path)} if at(path).endswith(".md") else {"abs_src_path": os.fspath(ROOT / path)}
        files.append(File.generated(config, at(path), **source))
    return files


def on_page_markdown(markdown, page, config, files):
    return rewritten(of(page.file.src_uri), markdown)


def on_page_content(content, page, config, files):
    from latex2mathml.converter import convert

    def formula(found: re.Match) -> str:
        return convert(html.unescape(found[3]).strip(), display="inline" if found[2] == "(" else "block")

    return FORMULAS.sub(formula, content)
