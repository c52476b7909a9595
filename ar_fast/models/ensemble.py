"""An ensemble: several models of the same events as one distribution with the average of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from .. import heads
from .._philox import philox_uniform
from .._progress import progress_bar
from . import _files, _inputs
from .base import AutoregressiveModel
from .distribution import AutoregressiveDistribution
from .sampling import draw, make_request, sample_dtype

__all__ = ["Ensemble"]

# The counter of the random numbers that pick members: no variable has this index.
_PICK = 2**32 - 1
# Samples are numbered in blocks, and each member numbers its own samples within a block.
_BLOCK = 1024


class Ensemble(nn.Module):
    r"""The mixture, with equal weights, of models of the same events.

    .. math:: p(x) = \frac{1}{M} \sum_m p_m(x)

    Members may differ in everything except the event, its values and the context. Most often they differ in their order
    (:meth:`AutoregressiveModel.in_order` makes such members, which share all parameters). A mixture of different orders
    has no conditionals, so an ensemble has no ``forward``, ``begin`` and ``per_variable``.

    Args:
        members: M models.

    Raises:
        ValueError: if members differ in event_shape, in the values of variables, context_features, device or dtype.

    Source: Uria, Murray, Larochelle, "A deep and tractable density estimator", ICML 2014, section 4.1 (ensembles of
    orderings).

    Example:
        >>> from ar_fast import orderings
        >>> from ar_fast.models import NADE
        >>> model = NADE(5, hidden_features=4)
        >>> ensemble = Ensemble([model.in_order(orderings.random(5, seed)) for seed in range(8)])
        >>> x = ensemble.sample(3, seed=0)
        >>> x.shape, ensemble.log_prob(x).shape
        (torch.Size([3, 5]), torch.Size([3]))
    """

    def __init__(self, members: Sequence[AutoregressiveModel]) -> None:
        super().__init__()
        members = list(members)
        if not members or not all(isinstance(member, AutoregressiveModel) for member in members):
            raise ValueError(f"Ensemble: members must be one or more models, got {members!r}")
        for name, of in (
            ("event_shape", lambda member: tuple(member.event_shape)),
            ("values", lambda member: member.head.sizes(member.variables)),
            ("context_features", lambda member: member.context_features),
            ("device", lambda member: member.device),
            ("compute dtype", lambda member: member.compute_dtype),
        ):
            for index, member in enumerate(members):
                if of(member) != of(members[0]):
                    raise ValueError(
                        f"Ensemble: members must agree in {name}, got {of(members[0])!r} of member 0 and "
                        f"{of(member)!r} of member {index}"
                    )
        self.members: Any = nn.ModuleList(members)

    @property
    def _first(self) -> AutoregressiveModel:
        return self.members[0]

    @property
    def event_shape(self) -> torch.Size:
        return self._first.event_shape

    @property
    def context_features(self) -> int:
        return self._first.context_features

    @property
    def head(self) -> heads.Head:
        return self._first.head

    @property
    def device(self) -> torch.device:
        return self._first.device

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, observed: Tensor | None = None) -> Tensor:
        """The log-probability in nats: the logarithm of the members' mean probability, in float64 until returned.

        Args:
            x: (*batch, *event_shape).
            context: (*context_batch, C); see :meth:`AutoregressiveModel.log_prob`.
            observed: bool, (*event_shape), preceded by none or some of the last dimensions of batch: which variables
                are observed. Each member must be able to compute their marginal.

        Returns:
            (*batch), in the members' compute dtype.

        Raises:
            ValueError: as raised by the members.
        """
        terms = [member.log_prob(x, context, observed=observed) for member in self.members]
        total = torch.stack(terms).double().logsumexp(0) - math.log(len(terms))
        return total.to(terms[0].dtype)

    @torch.no_grad()
    def sample(
        self,
        n: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        first_index: int = 0,
        given: Tensor | None = None,
        known: Tensor | None = None,
        temperature: float = 1.0,
        return_log_prob: bool = False,
        progress: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draws events: a random number picks a member for each event, and this member draws it.

        Sample number first_index + i is the same whatever n is, as with a single model.

        Args:
            n: how many, or a shape of samples.
            context: (*context_batch, C) if the members have context_features; n events are drawn for each.
            seed: 0 ... 2^63 - 1. None takes one number from generator.
            generator: the seed is drawn from it; None is torch's default generator. Not used if seed is given.
            first_index: number of the first sample.
            given: values of known variables, (*event_shape), preceded by none or some of the last dimensions of
                context_batch: the same for all n. Members are picked in proportion to the probability they give them.
            known: bool, of such a shape too: which variables are taken from given and not drawn, a prefix of every
                member's order.
            temperature: > 0, used by each draw; it does not change which member is picked.
            return_log_prob: also return the log-probability of the drawn variables, at temperature 1.
            progress: show a progress bar, on a terminal or in a notebook.

        Returns:
            (*n, *context_batch, *event_shape), as the members return it; with return_log_prob also
            (*n, *context_batch), computed by one evaluation of all members.

        Raises:
            ValueError: for a wrong argument.
        """
        shape = _inputs.sample_shape("Ensemble", "n", n)
        seed = _inputs.draw_seed("Ensemble", seed, generator)
        # Requests of one sample for each context; the requests of all samples are made from them below.
        one = [
            make_request(member, (), context, seed, None, first_index, given, known, False, temperature)
            for member in self.members
        ]
        contexts, batch = one[0].rows, shape + one[0].batch
        rows, first_row = math.prod(batch), one[0].first_row
        picks, ranks = self._picks(seed, first_row, rows, contexts, self._shares(one, context, given, known))
        events = torch.zeros(rows, self._first.variables, dtype=sample_dtype(self._first), device=self.device)
        numbers = first_row + torch.arange(rows)
        with progress_bar(total=events.numel(), unit="variable", unit_scale=True, show=progress) as bar:
            for index, member in enumerate(self.members):
                own = (picks == index).nonzero()[:, 0]
                sampler = member._sampler(one[index]) if len(own) else None
                for block in (numbers[own] // _BLOCK).unique().tolist():
                    here = own[numbers[own] // _BLOCK == block]
                    which = (numbers[here] % contexts).to(self.device)
                    request = replace(
                        one[index],
                        batch=torch.Size([len(here)]),
                        contexts=None if context is None else one[index].contexts[which],
                        seed=_member_seed(seed, index),
                        first_row=block * _BLOCK + int(ranks[here[0]]),
                        given=None if given is None else one[index].given[which],
                        known=None if known is None else one[index].known[which],
                    )
                    events[here.to(self.device)] = draw(request, sampler, bar.update)[0]
        samples = events.reshape(batch + self.event_shape)
        if not return_log_prob:
            return samples
        log_prob = self.log_prob(samples, context)
        if given is not None and known is not None:
            log_prob = log_prob - self._of_known(context, given, known)
        return samples, log_prob

    def _shares(self, one: list, context: Tensor | None, given: Tensor | None, known: Tensor | None) -> Tensor:
        """(contexts, M) float64: the probability of each member, given what is known."""
        if given is None or known is None:
            return torch.ones(one[0].rows, len(one), dtype=torch.float64)
        given, known, context = self._expanded(context, given, known)
        terms = [member.log_prob(given, context, observed=known) for member in self.members]
        return torch.stack(terms, -1).reshape(-1, len(terms)).double().softmax(-1).cpu()

    def _of_known(self, context: Tensor | None, given: Tensor, known: Tensor) -> Tensor:
        given, known, context = self._expanded(context, given, known)
        return self.log_prob(given, context, observed=known)

    def _expanded(self, context: Tensor | None, given: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """given and known as (*context_batch, *event_shape), and the context."""
        batch = torch.Size() if context is None else context.shape[:-1]
        return given.expand(batch + self.event_shape), known.expand(batch + self.event_shape), context

    def _picks(self, seed: int, first_row: int, rows: int, contexts: int, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Which member draws each row, and how many earlier rows of the same block that member draws."""
        start = first_row // _BLOCK * _BLOCK
        numbers = torch.arange(start, first_row + rows)
        uniform = philox_uniform(seed, numbers, torch.tensor(_PICK))
        running = (
            shares.cumsum(-1)[numbers % contexts] if contexts else shares.new_zeros(len(numbers), len(self.members))
        )
        picks = (running <= uniform.unsqueeze(-1) * running[:, -1:]).sum(-1).clamp(max=len(self.members) - 1)
        ranks = torch.zeros_like(picks)
        for index in range(len(self.members)):
            own = (picks == index).nonzero()[:, 0]
            block = (numbers[own] - start) // _BLOCK
            before = torch.bincount(block, minlength=1).cumsum(0) - torch.bincount(block, minlength=1)
            ranks[own] = torch.arange(len(own)) - before[block]
        return picks[first_row - start :], ranks[first_row - start :]

    def distribution(self, context: Tensor | None = None) -> AutoregressiveDistribution:
        """The ensemble as a torch.distributions.Distribution, whose batch_shape is that of the context."""
        _inputs.check_context(self._first, context)
        return AutoregressiveDistribution(self, context)

    def save(self, directory: str | Path) -> None:
        """Writes config.json and a directory for each member; shared parameters are written with every member."""
        _files.save_ensemble(self.members, Path(directory))

    def load(self, directory: str | Path) -> Self:
        """Reads what ``save`` wrote into the members, and returns the ensemble. Nothing is unpickled.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file is truncated or not a model's, or a member was made with other arguments. The members
                do not change then.
        """
        directories = _files.members(Path(directory), _files.read_config(Path(directory)))
        if len(directories) != len(self.members):
            raise ValueError(
                f"load: members must be {len(self.members)} as in this ensemble, got {len(directories)} in {directory}"
            )
        for member, own in zip(self.members, directories, strict=True):
            _files.read(member, own)
        for member, own in zip(self.members, directories, strict=True):
            _files.load(member, own)
        return self


def _member_seed(seed: int, index: int) -> int:
    """A different seed for each member, since two of them may draw under the same number."""
    return int(philox_uniform(seed, torch.tensor(index), torch.tensor(_PICK), slot=1).item() * 2**63)
