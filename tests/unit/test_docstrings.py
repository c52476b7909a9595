"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import ar_fast
from ar_fast import _library, heads

MODULES = ["ar_fast"] + [
    module.name
    for module in pkgutil.walk_packages(ar_fast.__path__, "ar_fast.")
    if not any(part in module.name for part in (".cli", "demo", "_C", "libar_fast", "__main__"))
]


@pytest.mark.filterwarnings("ignore:ar_fast. with AR_FAST_BACKEND=reference")
@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    if name == "ar_fast._info" and _library.backend == "reference":
        pytest.skip("its example is about the compiled backend")
    module = importlib.import_module(name)
    names = {head: getattr(heads, head) for head in heads.__all__} if name.startswith("ar_fast.heads.") else {}
    result = doctest.testmod(module, extraglobs={"torch": torch} | names)
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 20
