"""Products of parameters, of which the fast suite takes as many as cover every pair. Imports no library under test."""

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
