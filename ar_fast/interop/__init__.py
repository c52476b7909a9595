"""Modules of other libraries: made faster in place, read one variable at a time, or turned into models."""

from . import sbi
from .acceleration import accelerate, accelerated, acceleration_report, restore
from .reading import incremental
from .report import AccelerationReport

__all__ = [
    "AccelerationReport",
    "accelerate",
    "accelerated",
    "acceleration_report",
    "incremental",
    "restore",
    "sbi",
]
