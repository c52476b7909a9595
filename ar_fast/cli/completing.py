"""Completions of events in which something that is kept comes after what is drawn."""

from __future__ import annotations

from typing import Any

import click
import numpy as np
import torch

from ..tasks.completion import Completion, complete


def in_front(model: Any, known: torch.Tensor) -> bool:
    """Whether what is kept comes first in the model's order, in every event."""
    by_position = model._by_position(known.reshape(-1, model.variables), 1)
    return not bool((by_position[:, 1:] & ~by_position[:, :-1]).any())


def complete_each(
    model: Any, x: torch.Tensor, known: torch.Tensor, count: int, particles: int, seed: int
) -> torch.Tensor:
    """(count, N, *event_shape) for events x (N, *event_shape); what the particles are worth goes to standard error.

    ``known`` is (*event_shape), or differs between events.
    """
    masks, drawn = known.expand(x.shape), []
    for index, (event, mask) in enumerate(zip(x, masks, strict=True)):
        found = complete(model, event, mask, count, particles=particles, seed=_own_seed(seed, index), progress=True)
        click.echo(f"{f'event {index}: ' if len(x) > 1 else ''}{described(found)}", err=True)
        drawn.append(found.samples)
    return torch.stack(drawn, 1)


def mixture_each(
    model: Any, x: torch.Tensor, known: torch.Tensor, count: int, temperature: float, seed: int
) -> torch.Tensor:
    """The same by an Ensemble, of whose members each must have what is kept first in its order."""
    drawn = [
        model.sample(count, given=event, known=mask, seed=_own_seed(seed, index), temperature=temperature)
        for index, (event, mask) in enumerate(zip(x, known.expand(x.shape), strict=True))
    ]
    return torch.stack(drawn, 1)


def _own_seed(seed: int, index: int) -> int:
    """No event has the random numbers of another one, nor those of an event under the next seed."""
    return seed if index == 0 else int(np.random.default_rng((seed, index)).integers(2**63))


def described(found: Completion) -> str:
    """One line for people."""
    nats = f"log-probability of what is kept: {found.log_prob_known:.2f} nats"
    if found.exact:
        return f"independent draws; {nats}"
    sizes = found.effective_sample_sizes
    return (
        f"{found.particles} particles, {found.resamplings} resamplings, effective sample size at least "
        f"{sizes.min():.0f}, at the end {sizes[-1]:.0f}, {found.survivors} draws of the first variable left; {nats}, "
        "estimated"
    )
