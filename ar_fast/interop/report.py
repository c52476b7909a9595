"""What an acceleration did, part by part."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["AccelerationReport", "Left", "Part"]


@dataclass(frozen=True)
class Part:
    """A module that was accelerated.

    Attributes:
        name: its path below the module that was accelerated; empty for that module itself.
        kind: its class.
        library: the reader that recognised it: "plain", "zuko", "nflows", "normflows" or "pyro".
        replaced: the method, "forward" or "inverse".
        by: what runs in its place, and where the original still runs.
        deviation: the largest difference from the original's output, relative to that output's largest value.
        notes: what else was found, such as a defect of the network, which is kept.
    """

    name: str
    kind: str
    library: str
    replaced: str
    by: str
    deviation: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Left:
    """A module that was not accelerated, and why."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class AccelerationReport:
    """What :func:`ar_fast.accelerate` replaced by what, and what it left and why; printing it says both.

    Attributes:
        parts: the modules that were accelerated.
        left: the modules that could have been and were not.
    """

    parts: tuple[Part, ...] = ()
    left: tuple[Left, ...] = field(default=())

    def __str__(self) -> str:
        lines = [f"{len(self.parts)} parts accelerated, {len(self.left)} left as they were"]
        for part in self.parts:
            where = f"{part.name or '(the module itself)'}: {part.kind}.{part.replaced} [{part.library}]"
            lines.append(f"  {where}: {part.by}; deviation {part.deviation:.1e}")
            lines += [f"    {note}" for note in part.notes]
        lines += [f"  {part.name or '(the module itself)'}: {part.kind} left: {part.reason}" for part in self.left]
        lines.append("  Pickles and torch.save hold the original, without the acceleration.")
        return "\n".join(lines)
