"""Whether the processes that train a model together do the same thing, where each decides it for itself."""

from __future__ import annotations

import itertools
import weakref

from torch import distributed, nn

__all__ = ["check_agreement"]

# As many turns later no rank can be at one still: each waits for the others in every backward pass.
_KEPT_TURNS = 64

_numbers = itertools.count()
#: The models by the order in which they were first compared: the same one has the same number in every process.
_number_of: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
#: What each last said, so that it says it once.
_said: weakref.WeakKeyDictionary[nn.Module, tuple[int, int]] = weakref.WeakKeyDictionary()


def check_agreement(model: nn.Module, name: str, turn: int, value: int) -> None:
    """Raises where another rank has another ``value`` in the same turn of its copy of the model.

    Through the store of the process group, where the first rank that comes leaves its value: no rank waits for another,
    so none is left waiting by one that raises, or that does not ask.

    Raises:
        RuntimeError: in each rank that comes later with another value.
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    store = distributed.distributed_c10d._get_default_store()
    # A group over MPI has no store.
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
