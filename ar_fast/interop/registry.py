"""Which library's way to read a module fits it. The file of a library is imported when a module is looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from .chains import ChainKind
    from .transforms import Kind

__all__ = ["chain_kind", "is_coupling", "transform_kind"]


def is_coupling(module: nn.Module) -> bool:
    """Whether a module is a coupling transform, of nflows or zuko: half of the variables decide about the others."""
    if hasattr(module, "_coupling_transform_forward"):
        return True
    return all(hasattr(module, name) for name in ("hyper", "mask", "univariate", "meta"))


def transform_kind(module: nn.Module) -> Kind | None:
    """How an autoregressive transform is read, or None for any other module."""
    from . import nflows, normflows, pyro, zuko

    for library in (zuko, normflows, nflows):
        if library.matches(module):
            return library.KIND
    return pyro.kind_of(module)


def chain_kind(module: nn.Module) -> ChainKind | None:
    """How a chain of transforms is read, or None for any other module."""
    from . import nflows, zuko

    for library in (zuko, nflows):
        if library.is_chain(module):
            return library.CHAIN
    return None
