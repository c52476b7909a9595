"""Which library's way to read a module fits it. The file of a library is imported when a module is looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from .transforms import Kind

__all__ = ["transform_kind"]


def transform_kind(module: nn.Module) -> Kind | None:
    """How an autoregressive transform is read, or None for any other module."""
    from . import nflows, normflows, pyro, zuko

    for library in (zuko, normflows, nflows):
        if library.matches(module):
            return library.KIND
    return pyro.kind_of(module)
