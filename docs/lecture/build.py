"""python docs/lecture/build.py: runs examples/lecture.py and writes examples/lecture.ipynb, this folder's README.md and
its pictures, so that the three can't drift apart. It needs the extra `lecture`."""

import base64
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "examples" / "lecture.py"
NOTEBOOK = ROOT / "examples" / "lecture.ipynb"
PAGE = Path(__file__).parent / "README.md"
HEAD = """<!-- Written by docs/lecture/build.py from examples/lecture.py: change that one. -->

[The same as a notebook](../../examples/lecture.ipynb). `pip install --no-build-isolation ".[lecture]"` from a checkout
has what it needs, and `python docs/lecture/build.py` makes this page and the notebook anew. The figures are those of
one thread of a 2-core CPU.
"""


def execute() -> dict:
    import jupytext
    import nbformat
    from nbclient import NotebookClient

    notebook = jupytext.read(SOURCE)
    NotebookClient(notebook, timeout=600, coalesce_streams=True, resources={"metadata": {"path": str(ROOT)}}).execute()
    for number, cell in enumerate(notebook.cells):
        # What a run leaves that says nothing: times of execution, random names of cells.
        cell["id"] = f"cell-{number}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            # Warnings name paths of the machine.
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.validate(notebook)
    return notebook


def page(notebook: dict) -> tuple[str, dict[str, bytes]]:
    """The page, and its pictures by name. A link of the notebook leads from examples/, one of the page from here."""
    parts, pictures, section = [], {}, 0
    for cell in notebook["cells"]:
        text = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            found = re.match(r"## (\d+)\.", text)
            section = int(found[1]) if found else section
            parts.append(text.replace("](../docs/", "](../").replace("](../bench/", "](../../bench/"))
            continue
        code = f"```python\n{text}\n```"
        parts.append(code if section else f"<details><summary>The tools</summary>\n\n{code}\n\n</details>")
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                printed = output["text"] if isinstance(output["text"], str) else "".join(output["text"])
                parts.append(f"```text\n{printed.rstrip()}\n```")
            elif "image/png" in output.get("data", {}):
                name = f"step-{section:02}.png"
                pictures[name] = base64.b64decode("".join(output["data"]["image/png"]))
                parts.append(f"![The picture of step {section}]({name})")
    title, *rest = parts
    first, _, others = title.partition("\n\n")
    return "\n\n".join([first, HEAD.strip(), others, *rest]) + "\n", pictures


def main() -> int:
    import nbformat

    notebook = execute()
    nbformat.write(notebook, NOTEBOOK)
    text, pictures = page(notebook)
    PAGE.write_text(text)
    for name, content in pictures.items():
        PAGE.with_name(name).write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
