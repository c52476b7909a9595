"""Columns of text."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The cells of each row padded to the width of their column: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    ]
