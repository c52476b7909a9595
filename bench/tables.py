"""Results as Markdown and JSON."""

import json
from itertools import groupby
from pathlib import Path

from .cases import OURS
from .run import Row

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"


def duration(seconds: float) -> str:
    """Three significant digits in the unit that suits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}" if seconds / scale < 1000 else f"{seconds / scale:.0f} {unit}"
    return f"{seconds / 1e-6:.2g} µs"


def case_table(rows: list[Row]) -> str:
    """One case: a line per contender with its median, quartiles, ratio to ar_fast and error."""
    first = rows[0]
    lines = [
        f"**{first.case}**: {first.sizes}, {first.dtype}, {first.data}",
        "",
        "| contender | median | quartiles | time / ar_fast | error vs float64 |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        if row.skipped:
            lines.append(f"| {row.contender} | skipped: {row.skipped} | | | |")
            continue
        ratio = "1" if row.contender == OURS else f"{row.ratio:.2f}"
        quartiles = f"{duration(row.lower)} to {duration(row.upper)}"
        error = "" if row.error is None else f"{row.error:.1e}"
        lines.append(f"| {row.contender} | {duration(row.median)} | {quartiles} | {ratio} | {error} |")
    return "\n".join(lines) + "\n"


def grid_table(rows: list[Row]) -> str:
    """Many sizes of one case: a line per size, a column per contender with its median and error, best peer last."""
    contenders = list(dict.fromkeys(row.contender for row in rows))
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    peers = contenders[1:]
    lines = [
        f"**{rows[0].case}**: {', '.join(dtypes)}, {rows[0].data}; median (error vs float64)",
        "",
        "| sizes | " + " | ".join(contenders) + " | " + f"{peers[0]} / ar_fast |",
        "|---|" + "---:|" * (len(contenders) + 1),
    ]
    for (sizes, dtype), group in groupby(rows, key=lambda row: (row.sizes, row.dtype)):
        cells = {row.contender: row for row in group}
        shown = []
        for name in contenders:
            row = cells.get(name)
            skipped = row is None or row.skipped
            error = "" if skipped or row.error is None else f" ({row.error:.0e})"
            shown.append("skipped" if skipped else duration(row.median) + error)
        label = sizes if len(dtypes) == 1 else f"{sizes}, {dtype}"
        lines.append(f"| {label} | " + " | ".join(shown) + f" | {cells[peers[0]].ratio:.2f} |")
    slower = [row for row in rows if row.contender == peers[0] and row.ratio is not None and row.ratio < 1]
    total = sum(row.contender == peers[0] for row in rows)
    lines += ["", f"ar_fast is slower than {peers[0]} at {len(slower)} of {total} sizes."]
    return "\n".join(lines) + "\n"


def markdown(rows: list[Row], environment: dict) -> str:
    lines = ["# Benchmark", ""]
    lines += [f"- {name}: {value}" for name, value in environment.items() if name != "settings"]
    lines += [f"- settings: {', '.join(f'{k} = {v}' for k, v in environment['settings'].items())}", ""]
    lines += [
        "Contenders take turns in one process, warm; medians. The error is the largest difference from float64 as a",
        "part of the largest magnitude; for sampling, of the log-likelihood that a contender gives to its own draws.",
        "",
    ]
    for _, group in groupby(rows, key=lambda row: (row.case, row.data)):
        group = list(group)
        many = len({(row.sizes, row.dtype) for row in group}) > 1
        lines.append(grid_table(group) if many else case_table(group))
    return "\n".join(lines)


def write(directory: Path, name: str, rows: list[Row], environment: dict) -> tuple[Path, Path]:
    """Writes NAME.md and NAME.json, and returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = directory / f"{name}.md", directory / f"{name}.json"
    paths[0].write_text(markdown(rows, environment) + "\n")
    results = [{key: value for key, value in vars(row).items() if value is not None} for row in rows]
    paths[1].write_text(json.dumps({"environment": environment, "results": results}, indent=1) + "\n")
    return paths


def write_table(
    directory: Path, name: str, title: str, environment: dict, header: list[str], rows: list[list[str]], note: str
) -> Path:
    """Writes one table of its own to NAME.md, and returns its path."""
    lines = [f"# {title}", "", *(f"- {key}: {value}" for key, value in environment.items() if key != "settings"), ""]
    # Names begin at the left, and numbers end at the right.
    names = [any(cell and not cell.lstrip("-")[:1].isdigit() for cell in column) for column in zip(*rows, strict=True)]
    lines += ["| " + " | ".join(header) + " |", "|" + "".join("---|" if own else "---:|" for own in names)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.md"
    path.write_text("\n".join([*lines, "", note]) + "\n")
    return path


def replace_between(page: Path, name: str, text: str) -> None:
    """Puts text between the lines <!-- NAME --> and <!-- end of NAME --> of a page.

    Raises:
        ValueError: if the page does not have each of them once, in this order.
    """
    first, last = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    whole = page.read_text(encoding="utf-8")
    before, *after = whole.split(first)
    parts = after[0].split(last) if len(after) == 1 else []
    if len(parts) != 2:
        raise ValueError(f"{page.name} must have the lines {first.strip()} and {last.strip()} once, in this order")
    page.write_text(f"{before}{first}\n{text.strip()}\n\n{last}{parts[1]}", encoding="utf-8")
