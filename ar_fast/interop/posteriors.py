"""The modules in what accelerate is called with: a module itself, or those that a posterior of sbi holds."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["modules_of"]


def modules_of(target: Any) -> dict[str, nn.Module]:
    """The modules to accelerate, by their paths in ``target``.

    Raises:
        TypeError: if it is neither a module nor a posterior.
    """
    if isinstance(target, nn.Module):
        return {"": target}
    if _is_posterior(target):
        return _modules_of(target)
    raise TypeError(f"accelerate: module must be a torch.nn.Module or a posterior of sbi, got {type(target).__name__}")


def _is_posterior(target: Any) -> bool:
    """Whether an object looks like a posterior of sbi: it samples, by a potential function."""
    return all(hasattr(target, name) for name in ("sample", "potential")) and (
        hasattr(target, "potential_fn") or hasattr(target, "posteriors")
    )


def _modules_of(posterior: Any) -> dict[str, nn.Module]:
    """The modules that a posterior holds, each once, by their paths below it: its estimator, that of its potential
    function, a variational distribution; those of a posterior that proposes, and of an ensemble's posteriors."""
    library = {own.__module__.partition(".")[0] for own in type(posterior).__mro__} - {"abc", "builtins", "typing"}
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def visit(path: str, value: Any) -> None:
        # Instances only: a posterior refers to classes too.
        if id(value) in seen or isinstance(value, type):
            return
        if isinstance(value, nn.Module):
            seen.add(id(value))
            found[path] = value
        elif isinstance(value, list | tuple):
            for index, own in enumerate(value):
                visit(f"{path}.{index}", own)
        elif {own.__module__.partition(".")[0] for own in type(value).__mro__} & library:
            seen.add(id(value))
            for name, own in getattr(value, "__dict__", {}).items():
                visit(f"{path}.{name}" if path else name, own)

    visit("", posterior)
    return found
