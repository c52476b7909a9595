"""Checks that the processes that train a model together agree, where each process decides something by itself."""

from __future__ import annotations

import itertools
import weakref

from torch import distributed, nn

__all__ = ["check_agreement"]

# After this many more turns no rank can still be in a turn: every rank waits for the others in every backward pass.
_KEPT_TURNS = 64

_numbers = itertools.count()
#: A number for each model, in the order of first comparison, so that a model has the same number in every process.
_number_of: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
#: What this process last published for each model, so that it publishes it only once.
_said: weakref.WeakKeyDictionary[nn.Module, tuple[int, int]] = weakref.WeakKeyDictionary()


def check_agreement(model: nn.Module, name: str, turn: int, value: int) -> None:
    """Raises if another rank has a different ``value`` in the same turn of its copy of the model.

    The ranks compare through the store of the process group, in which the first rank leaves its value. No rank waits
    for another here, so none hangs if another raises or never compares.

    Raises:
        RuntimeError: in each later rank that has another value.
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    store = distributed.distributed_c10d._get_default_store()
    # A process group over MPI has no store.
    if store is None or _said.get(model) == (turn, value):
        return
    if model not in _number_of:
        _number_of[model] = next(_numbers)
    key = f"ar_fast/{_number_of[model]}/{name}/"
    own = f"{value} in rank {distributed.get_rank()}"
    first = store.compare_set(f"{key}{turn}", "", own).decode()
    if first.split()[0] != str(value):
        raise RuntimeError(
            f"{type(model).__name__}: {name} must be the same in all ranks, got {first} and {own}, "
            f"after {turn} calls of next_mask"
        )
    _said[model] = turn, value
    store.delete_key(f"{key}{turn - _KEPT_TURNS}")
