"""Sequences of a CharRNN that are being drawn, and their states."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import functional
from .._integers import is_integer

if TYPE_CHECKING:
    from .char_rnn import CharRNN

__all__ = ["CharSampling", "CharState"]


@dataclass(frozen=True)
class CharState:
    """The state of a CharRNN in B sequences, from which ``log_prob`` and ``sample`` continue.

    Attributes:
        state: (L, B, H) of each layer, as in torch.nn, after all tokens except the last one.
        cell_state: (L, B, H) of an LSTM, else None.
        last: (B) int64, the last token, which is not in state yet; -1 if there is none.
        position: (B) int64, how many tokens there are.
        finished: (B) bool: which sequences drew their stop token.
        seed: seed of the draws, if there were any.
        first_index: sample index of row 0 of these draws.
    """

    state: Tensor
    cell_state: Tensor | None
    last: Tensor
    position: Tensor
    finished: Tensor
    seed: int | None = None
    first_index: int = 0

    def detach(self) -> CharState:
        """The same state without a graph, so that gradients end here: for truncated backpropagation."""
        cell_state = None if self.cell_state is None else self.cell_state.detach()
        return replace(self, state=self.state.detach(), cell_state=cell_state)

    @property
    def _states(self) -> tuple[Tensor, ...]:
        return (self.state,) if self.cell_state is None else (self.state, self.cell_state)


class CharSampling:
    """Sequences that are being drawn: what :meth:`CharRNN.sampling` returns.

    Each call of ``advance`` takes some more steps in all sequences, first over their prompts. An interrupted call
    (Ctrl-C) keeps what earlier calls drew, and a later call continues from there, bit for bit.

    Attributes:
        position: how many steps are done.
        positions: how many steps there are.

    Example:
        >>> from ar_fast.models import CharRNN
        >>> model = CharRNN("ab", hidden_features=4)
        >>> sampling = model.sampling(3, 10, seed=0)
        >>> sampling.advance(4)
        >>> sampling.lengths
        tensor([4, 4, 4])
        >>> sampling.advance()
        >>> torch.equal(sampling.tokens, model.sample(3, 10, seed=0)[0])
        True
    """

    # Steps follow the position in the sequence, so that the random numbers continue where a state's ended: step 0 is
    # the lowest position of all sequences that are not finished. Until their position comes, sequences that are further
    # along count as finished.

    def __init__(
        self,
        model: CharRNN,
        state: CharState,
        prompt: Tensor,
        prompt_lengths: Tensor,
        length: int,
        draws: dict[str, Any],
    ) -> None:
        self._begins, self._length, self._stop = state, length, draws["stop_token"]
        dtype, device, n = model.compute_dtype, model.device, len(prompt)
        running = ~state.finished
        first = int(state.position[running].min()) if bool(running.any()) else 0
        self._starts = state.position - first
        self._prompt_lengths = prompt_lengths
        self._ends = self._starts + prompt_lengths
        self._limits = self._ends + length
        #: The steps at which sequences start to run, ascending.
        self._cuts = sorted(set(self._starts[running].tolist()))
        self.position, self.positions = 0, int(self._limits[running].max()) if self._cuts else 0
        given = known = None
        if prompt.shape[1] > 0:
            offset = torch.arange(self.positions, device=device) - self._starts[:, None]
            known = (offset >= 0) & (offset < prompt_lengths[:, None])
            given = prompt.gather(1, offset.clamp(0, prompt.shape[1] - 1)).to(dtype)
        first_layer = model.rnn.layers(dtype)[0]
        table = first_layer.weight_ih.T
        if model.embedding is not None:
            table = model.embedding.weight.to(dtype) @ table
        self._step: Callable[..., Any] = functools.partial(
            functional.rnn_sample,
            in_table=table.contiguous(),
            in_bias=first_layer.bias_ih,
            **model.rnn.sampling_arguments(),
            out_weight=model.readout.weight,
            out_bias=model.readout.bias,
            head="categorical",
            variables=self.positions,
            given=given,
            known=known,
            limits=self._limits,
            seed=state.seed,
            first_index=state.first_index,
            first_position=first,
            **draws,
        )
        self._states = state.state, state.cell_state
        self._last, self._finished = state.last.clamp(min=0).to(dtype), state.finished | (self._starts > 0)
        self._values = torch.zeros(n, self.positions, dtype=torch.int64, device=device)
        self._log_prob = torch.zeros(n, dtype=torch.float64, device=device)

    @property
    def done(self) -> bool:
        """Whether all steps are done."""
        return self.position == self.positions

    @torch.no_grad()
    def advance(self, positions: int | None = None) -> None:
        """Takes the next ``positions`` steps, or all that are left if there are fewer; None takes all of them."""
        if positions is not None and (not is_integer(positions) or positions < 0):
            raise ValueError(f"CharSampling: positions must be an integer >= 0 or None, got {positions!r}")
        stop = self.positions if positions is None else min(self.position + int(positions), self.positions)
        cuts = [cut for cut in self._cuts if self.position < cut < stop]
        for begin, end in itertools.pairwise([self.position, *cuts, stop]):
            if begin == end:
                continue
            finished = torch.where(self._starts == begin, self._begins.finished, self._finished)
            state, cell_state = self._states
            drawn = self._step(state, self._last, cell_state=cell_state, finished=finished, start=begin, stop=end)
            self._values[:, begin:end] = drawn.values
            # Nothing can fail after this point: an interrupted call leaves the sampling as it was.
            self._states, self._last, self._finished = (drawn.state, drawn.cell_state), drawn.last, drawn.finished
            self._log_prob, self.position = self._log_prob + drawn.log_prob, end

    @property
    def _drawn(self) -> tuple[Tensor, Tensor]:
        """The tokens (n, length), with arbitrary values where none were drawn, and the lengths."""
        numbers = torch.arange(self._length, device=self._values.device)
        count = (self.position - self._ends).clamp(0, self._length).masked_fill(self._begins.finished, 0)
        if self.positions == 0 or self._length == 0:
            return torch.zeros(len(count), self._length, dtype=torch.int64, device=count.device), count
        tokens = self._values.gather(1, (self._ends[:, None] + numbers).clamp(0, self.positions - 1))
        stops = (tokens == self._stop) & (numbers < count[:, None])
        first_stop = torch.where(stops, numbers, self._length).amin(1)
        return tokens, torch.minimum(count, first_stop + 1)

    @property
    def tokens(self) -> Tensor:
        """(n, length) int64, the tokens drawn so far; padded with stop, or with 0."""
        tokens, lengths = self._drawn
        beyond = torch.arange(self._length, device=tokens.device) >= lengths[:, None]
        return tokens.masked_fill(beyond, max(0, self._stop))

    @property
    def lengths(self) -> Tensor:
        """(n) int64, how many tokens are drawn so far, including the stop token."""
        return self._drawn[1]

    @property
    def log_prob(self) -> Tensor:
        """Nats of the tokens drawn so far, at temperature 1, (n) in the compute dtype."""
        return self._log_prob.to(self._states[0].dtype)

    @property
    def state(self) -> CharState:
        """The state after the tokens drawn so far."""
        tokens, lengths = self._drawn
        known = torch.minimum((self.position - self._starts).clamp(min=0), self._prompt_lengths)
        position = self._begins.position + known.masked_fill(self._begins.finished, 0) + lengths
        numbers = torch.arange(self._length, device=tokens.device)
        stopped = ((tokens == self._stop) & (numbers < lengths[:, None])).any(1)
        return replace(
            self._begins,
            state=self._states[0],
            cell_state=self._states[1],
            last=torch.where(position > 0, self._last.long(), -1),
            position=position,
            finished=self._begins.finished | stopped,
        )
