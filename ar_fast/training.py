"""The public name of :mod:`ar_fast.tasks.training`."""

from .tasks.training import *  # noqa: F403
from .tasks.training import __all__ as __all__
