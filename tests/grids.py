"""Which tests there are, decided while they are collected. Imports no library under test."""

import importlib.util
import itertools
from collections.abc import Iterable

import pytest


def pairs(*values: Iterable) -> list:
    """Parameters of a test over every combination; the fast suite has those that cover every pair of the first two
    with each other and with the last, whose values take turns."""
    values = [list(options) for options in values]
    parameters = []
    for index in itertools.product(*(range(len(options)) for options in values)):
        covers = index[-1] == sum(index[:-1]) % len(values[-1])
        combination = (options[i] for options, i in zip(values, index, strict=True))
        parameters.append(pytest.param(*combination, marks=() if covers else pytest.mark.full))
    return parameters


def thinned(values: Iterable, step: int) -> list:
    """Parameters of a test; the fast suite has the first of every ``step``."""
    return [
        pytest.param(value, marks=() if index % step == 0 else pytest.mark.full) for index, value in enumerate(values)
    ]


def skip_module_without(extra: str, *packages: str) -> None:
    """Skips the module that calls, unless the packages are installed. They are looked for and not imported: every
    worker that collects the tests would take seconds for it."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs the {extra} extra: {', '.join(missing)}", allow_module_level=True)
