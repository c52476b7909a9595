"""Scopes in which weights do not change, so that tensors gathered from them can be kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from ._structure import version_of

__all__ = ["frozen"]


class Kept:
    """One value that was computed from some tensors, kept until one of them changes."""

    def __init__(self) -> None:
        self._made_of: list[tuple[Tensor, int | None, int]] = []
        self._value: Any = None
        self.closed = False

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # A deep copy of a frozen module, or one that was unpickled, is not frozen: no scope would end it.
        return type(None), ()

    def close(self) -> None:
        """From now on nothing is kept, including by shallow copies of the module."""
        self._made_of, self._value, self.closed = [], None, True

    def get(self, tensors: Iterable[Tensor | None], make: Callable[[], Any]) -> Any:
        """The result of ``make``; the last one if the tensors are still the same ones, unchanged."""
        if self.closed:
            return make()
        now = [(tensor, version_of(tensor), tensor.data_ptr()) for tensor in tensors if tensor is not None]
        if len(now) != len(self._made_of) or any(
            old is not new or old_rest != new_rest
            for (old, *old_rest), (new, *new_rest) in zip(self._made_of, now, strict=True)
        ):
            self._value, self._made_of = make(), now
        return self._value


def _is_free(part: Any) -> bool:
    """A shallow copy that was made in another scope has the Kept of that scope, which is closed."""
    return part._kept is None or part._kept.closed


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Within this scope, what the layers of a module gather from their weights is kept from call to call.

    Use it for many calls without gradients of a module whose weights do not change: a :class:`ar_fast.nn.MaskedLinear`
    whose units are not sorted keeps a sorted copy of its weights, a MADE of several sets of masks the weights of its
    sampler, and a DeepNADE with one hidden layer the table that it draws with. That takes as much memory again as those
    weights (a DeepNADE's table: twice as much as its first layer), until the scope ends. Outside nothing is kept.

    A change of a weight is noticed by the counter that every in-place operation on a tensor raises (an optimizer's
    step, ``copy_``, ``load_state_dict``): the next call gathers again. A write through ``.data`` or
    ``.detach().numpy()`` does not raise the counter and is not noticed until the scope ends.

    Args:
        module: any module; all its submodules are frozen with it.

    Example:
        >>> from ar_fast.models import MADE
        >>> model = MADE(6, hidden_features=[20], degrees="random", n_masks=2)
        >>> with frozen(model):
        ...     x = model.sample(3, seed=0)
        ...     y = model.sample(3, seed=0)
        >>> bool((x == y).all())
        True
    """
    own: list[Any] = [part for part in module.modules() if hasattr(type(part), "_kept") and _is_free(part)]
    for part in own:
        part._kept = Kept()
    try:
        yield module
    finally:
        for part in own:
            part._kept.close()
            part._kept = None
