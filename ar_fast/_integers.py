"""Integers as arguments: Python's and numpy's alike."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral

__all__ = ["integers"]


def integers(given: object) -> list[int] | None:
    """One or several integers as a list of Python's; None if anything else is given."""
    values = [given] if isinstance(given, Integral) else given
    # The elements of a str are not integers; a tensor without dimensions cannot be iterated over.
    if not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        return None
    values = list(values)
    return [int(value) for value in values] if all(isinstance(value, Integral) for value in values) else None
