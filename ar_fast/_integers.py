"""Numbers as arguments: Python's and numpy's alike."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real

from typing_extensions import TypeIs

__all__ = ["integers", "is_integer", "is_real"]


def is_integer(value: object) -> TypeIs[int]:
    """Whether a value is an integer. Type checkers do not know that an int is an ``Integral``."""
    return isinstance(value, Integral)


def is_real(value: object) -> TypeIs[float]:
    """Whether a value is a real number; an integer is one."""
    return isinstance(value, Real)


def integers(given: object) -> list[int] | None:
    """One or several integers as a list of Python's; None if anything else is given."""
    values = [given] if is_integer(given) else given
    # The elements of a str are not integers; a tensor without dimensions cannot be iterated over.
    if not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        return None
    values = list(values)
    return [int(value) for value in values] if all(is_integer(value) for value in values) else None
