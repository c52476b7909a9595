"""normflows: nflows' transforms, with a MADE whose context enters in another way."""

from __future__ import annotations

from typing import Any

from . import nflows

__all__ = ["KIND", "matches"]


def matches(module: Any) -> bool:
    return nflows.matches(module) and hasattr(module.autoregressive_net, "preprocessing")


class Normflows(nflows.Nflows):
    library = "normflows"
    gated = True


KIND = Normflows()
