"""CharRNN: a recurrent model of sequences of symbols of any length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from .. import functional
from .._integers import is_integer, is_real
from .._progress import progress_bar
from .._structure import first_parameter
from .._vocabulary import compute_dtype
from ..heads.base import chosen
from . import _files, _inputs
from ._recurrent import Recurrent
from .char_sampling import CharSampling, CharState
from .vocabulary import Vocabulary

__all__ = ["CharRNN"]

# One call of the sampling op draws so many positions that all rows together take about this many multiply-adds: for
# Ctrl-C within a second where a single row waits for the memory at each of them. A GPU's calls must not be so short.
_CALL_MULTIPLY_ADDS, _CALL_MULTIPLY_ADDS_ON_CUDA = 2**32, 2**36
# Long sequences are measured in pieces of about this many tokens (rows times positions).
_MEASURED_TOKENS = 2**16


class CharRNN(nn.Module):
    r"""A recurrent network over sequences of symbols: text, one character at a time, of any length.

    .. math::
        h_t = \mathrm{cell}(W e(x_{t-1}), h_{t-1}), \quad p(x_t = v \mid x_{<t}) = \mathrm{softmax}(V h_t + c)_v

    where e is an indicator of the symbol, or its row of an embedding; before the first symbol e and h are zero vectors.
    The first layer has G H (H + E) + 2 G H weights, each further layer 2 G H H + 2 G H, and the readout V (H + 1). E is
    the vocabulary's size V or embedding_features; G = 3, 4, 1 for gru, lstm, rnn. A token costs about G H^2
    multiply-adds per layer and V H for the readout, to evaluate or to draw.

    Args:
        vocabulary: the symbols, a str or a list of strings, or "bytes"; see :class:`Vocabulary`.
        hidden_features: H.
        cell: "gru", "lstm", "rnn" (tanh) or "rnn_relu".
        num_layers: how many layers.
        dropout: probability of a zero between layers while training; ``sample`` drops nothing.
        readout_dropout: the same between the last layer and the readout.
        embedding_features: E, the size of an embedding of the symbols; None means no embedding.
        validate_args: check that tokens are in the vocabulary. None checks on the CPU only; True checks on CUDA too.
        device: device of the parameters.
        dtype: dtype of the parameters: float32, float64, bfloat16 or float16.

    Attributes:
        vocabulary: the :class:`Vocabulary`.
        rnn: the recurrent weights, under the names of torch.nn.GRU, LSTM or RNN, whose fused functions log_prob uses.
        readout: torch.nn.Linear, (H) to (V).
        embedding: torch.nn.Embedding, or None.

    Raises:
        ValueError: for an argument that breaks a rule above.

    Source: Mikolov et al., "Recurrent neural network based language model", Interspeech 2010; Graves, "Generating
    sequences with recurrent neural networks", arXiv:1308.0850, 2013.

    Example:
        >>> model = CharRNN("abc ", hidden_features=8)
        >>> model.log_prob(model.encode("a cab")).shape
        torch.Size([])
        >>> tokens, lengths = model.sample(2, 6, prompt="ab", seed=0)
        >>> tokens.shape, lengths
        (torch.Size([2, 6]), tensor([6, 6]))
        >>> len(model.decode(tokens[0]))
        6
    """

    def __init__(
        self,
        vocabulary: str | Sequence[str] | Vocabulary,
        hidden_features: int,
        cell: str = "gru",
        num_layers: int = 1,
        dropout: float = 0.0,
        embedding_features: int | None = None,
        *,
        readout_dropout: float = 0.0,
        validate_args: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary(vocabulary)
        symbols = len(self.vocabulary)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        if embedding_features is not None:
            if not is_integer(embedding_features) or embedding_features < 1:
                raise ValueError(
                    f"CharRNN: embedding_features must be a positive integer or None, got {embedding_features!r}"
                )
            embedding_features = int(embedding_features)
        if not is_real(readout_dropout) or not 0 <= readout_dropout < 1:
            raise ValueError(f"CharRNN: readout_dropout must be a number in [0, 1), got {readout_dropout!r}")
        self.validate_args, self.readout_dropout = validate_args, float(readout_dropout)
        inputs = embedding_features or symbols
        self.rnn = Recurrent("CharRNN", cell, inputs, hidden_features, num_layers, dropout, **options)
        self.readout = nn.Linear(self.rnn.hidden_size, symbols, **options)
        self.embedding = None if embedding_features is None else nn.Embedding(symbols, embedding_features, **options)

    @classmethod
    def from_torch(
        cls,
        rnn: nn.RNNBase,
        readout: nn.Linear,
        embedding: nn.Embedding | None = None,
        *,
        vocabulary: str | Sequence[str] | Vocabulary | None = None,
    ) -> Self:
        """The model that shares the parameters of torch's modules: training one trains the other.

        Args:
            rnn: a torch.nn.GRU, LSTM or RNN whose inputs are V indicators or the embedding's features.
            readout: from (H) to (V), with a bias.
            embedding: an embedding of V symbols.
            vocabulary: V symbols; None names them "0", "1", ...

        Raises:
            ValueError: for a module that is bidirectional, has a projection or no biases, or for sizes that differ.
        """
        recurrent = Recurrent.from_torch("CharRNN", rnn)
        if not isinstance(readout, nn.Linear) or readout.bias is None or readout.in_features != rnn.hidden_size:
            raise ValueError(
                f"CharRNN: readout must be a torch.nn.Linear of {rnn.hidden_size} features with a bias, got {readout!r}"
            )
        symbols = readout.out_features
        if embedding is not None and (not isinstance(embedding, nn.Embedding) or embedding.max_norm is not None):
            raise ValueError(f"CharRNN: embedding must be a torch.nn.Embedding without max_norm, got {embedding!r}")
        made_of = (symbols, symbols) if embedding is None else (embedding.num_embeddings, embedding.embedding_dim)
        if made_of != (symbols, rnn.input_size):
            raise ValueError(
                f"CharRNN: embedding must be one of {symbols} symbols with {rnn.input_size} features, as readout and "
                f"rnn have them, or None for {symbols} input features, got {embedding!r}"
            )
        modules = [module for module in (rnn, readout, embedding) if module is not None]
        kinds = {(p.dtype, p.device) for module in modules for p in module.parameters()}
        if len(kinds) > 1:
            raise ValueError(f"CharRNN: parameters must be of one dtype on one device, got {sorted(map(str, kinds))}")
        names = [str(number) for number in range(symbols)] if vocabulary is None else vocabulary
        features = None if embedding is None else embedding.embedding_dim
        model = cls(names, rnn.hidden_size, recurrent.cell, embedding_features=features, device="meta")
        if len(model.vocabulary) != symbols:
            raise ValueError(f"CharRNN: vocabulary must have {symbols} symbols, got {len(model.vocabulary)}")
        model.rnn, model.readout, model.embedding = recurrent, readout, embedding
        return model.train(rnn.training)

    def to_torch(self) -> tuple[nn.RNNBase, nn.Linear, nn.Embedding | None]:
        """rnn (batch_first), readout and embedding as modules of torch.nn that share these parameters."""
        return self.rnn.to_torch(), self.readout, self.embedding

    def reset_parameters(self) -> None:
        """Initialises as torch.nn does, from torch's default generator."""
        for module in (self.rnn, self.readout, self.embedding):
            if module is not None:
                module.reset_parameters()

    @property
    def hidden_features(self) -> int:
        return self.rnn.hidden_size

    @property
    def device(self) -> torch.device:
        return first_parameter(self).device

    @property
    def dtype(self) -> torch.dtype:
        return first_parameter(self).dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of logits and log_prob: float64 for float64, else float32."""
        return compute_dtype(self.dtype)

    def encode(self, text: str | bytes | Sequence[str]) -> Tensor:
        """The tokens of a text, (T) int64 on the model's device; ValueError for an unknown symbol."""
        return self.vocabulary.encode(text).to(self.device)

    def decode(self, tokens: Tensor) -> str:
        """The text of tokens (T)."""
        return self.vocabulary.decode(tokens)

    def count_parameters(self) -> int:
        """How many parameters there are."""
        return sum(parameter.numel() for parameter in self.parameters())

    # Evaluation.

    def begin(self, batch: int) -> CharState:
        """The state before the first token of ``batch`` sequences."""
        like = torch.empty(0, dtype=self.compute_dtype, device=self.device)
        states = self.rnn.zero_states(like, (batch,))
        zeros = torch.zeros(batch, dtype=torch.int64, device=self.device)
        return CharState(states[0], states[1] if len(states) > 1 else None, zeros - 1, zeros, zeros.bool())

    def _inputs(self, tokens: Tensor) -> Tensor:
        """(..., E) of tokens (...): zeros for -1, NaN for what is no symbol."""
        none = tokens == -1
        row, factor = chosen(tokens.masked_fill(none, 0), len(self.vocabulary), self.compute_dtype)
        if self.embedding is None:
            zeros = torch.zeros(*tokens.shape, len(self.vocabulary), dtype=self.compute_dtype, device=tokens.device)
            inputs = zeros.scatter(-1, row.unsqueeze(-1), 1.0)
        else:
            weight = self.embedding.weight.to(self.compute_dtype)
            inputs = F.embedding(row, weight, self.embedding.padding_idx)
        return (inputs * factor.unsqueeze(-1)).masked_fill(none.unsqueeze(-1), 0.0)

    def _readout(self, hidden: Tensor) -> Tensor:
        dtype, hidden = self.compute_dtype, F.dropout(hidden, self.readout_dropout, self.training)
        return F.linear(hidden, self.readout.weight.to(dtype), self.readout.bias.to(dtype)).to(dtype)

    def _advance(
        self, tokens: Tensor, lengths: Tensor | None, state: CharState, keep: bool
    ) -> tuple[Tensor, CharState | None]:
        """The logits for each of tokens (B, T), and with ``keep`` the state after each row's lengths (B)."""
        inputs = self._inputs(torch.cat([state.last[:, None], tokens[:, :-1]], 1)[:, : tokens.shape[1]])
        states, hidden, start = state._states, [], 0
        # A row's state is the one after its own last token, so the run is cut where rows end.
        ends = [tokens.shape[1]]
        if keep and lengths is not None:
            ends = sorted({*lengths.tolist(), *ends} - {0}) or [0]
        for end in ends:
            outputs, after = self.rnn(inputs[:, start:end], states)
            hidden.append(outputs)
            if lengths is not None and keep:
                running = (lengths >= end)[:, None]
                after = tuple(torch.where(running, new, old) for new, old in zip(after, states, strict=True))
            states, start = after, end
        logits = self._readout(hidden[0] if len(hidden) == 1 else torch.cat(hidden, 1))
        if not keep:
            return logits, None
        count = torch.full_like(state.position, tokens.shape[1]) if lengths is None else lengths
        known = torch.cat([state.last[:, None], tokens], 1)
        last = known.gather(1, count[:, None])[:, 0]
        cell_state = states[1] if len(states) > 1 else None
        position = state.position + count
        return logits, replace(state, state=states[0], cell_state=cell_state, last=last, position=position)

    def log_prob(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        *,
        state: CharState | None = None,
        per_token: bool = False,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, CharState]:
        """The log-probability of sequences in nats.

        Args:
            tokens: (*batch, T) integers.
            lengths: (*batch) integers in 0 ... T: only this many tokens of each sequence count, whatever the others
                hold. None is T.
            state: the sequences continue from it. Gradients flow back into the computation of the state; ``detach`` it
                for truncated backpropagation.
            per_token: return the log-probability of each token, 0 for those that do not count.
            return_state: also return the state after these tokens.

        Returns:
            (*batch), summed in float64, or (*batch, T); in the compute dtype. With return_state also a
            :class:`CharState`.

        Raises:
            ValueError: for a wrong shape, dtype or device; under validate_args for a token that is not in the
                vocabulary or a length that is not in 0 ... T.
        """
        batch, tokens, lengths = self._check_tokens(tokens, lengths)
        logits, after = self._advance(tokens, lengths, self._checked(state, len(tokens)), return_state)
        if tokens.shape[1] == 0:
            terms = logits.sum(-1)
        else:
            terms = functional.head_log_prob(logits.flatten(1), tokens, head="categorical")
        if lengths is not None:
            counts = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
            terms = terms.masked_fill(~counts, 0.0)
        if per_token:
            log_prob = terms.reshape(*batch, tokens.shape[1])
        else:
            log_prob = terms.sum(1, dtype=torch.float64).to(self.compute_dtype).reshape(batch)
        return (log_prob, after) if return_state else log_prob

    def forward(self, tokens: Tensor, state: CharState | None = None) -> Tensor:
        """The logits for each of tokens (*batch, T) given the tokens before it, (*batch, T, V)."""
        batch, rows, _ = self._check_tokens(tokens, None)
        logits, _ = self._advance(rows, None, self._checked(state, len(rows)), False)
        return logits.reshape(*batch, *logits.shape[1:])

    def _check_tokens(self, tokens: Tensor, lengths: Tensor | None) -> tuple[torch.Size, Tensor, Tensor | None]:
        """The batch shape, tokens as (B, T) with zeros where they do not count, and lengths as (B)."""
        _check_integers("tokens", tokens, self.device)
        if tokens.dim() == 0:
            raise ValueError("CharRNN: tokens must have shape (*batch, T), got ()")
        batch, length = tokens.shape[:-1], tokens.shape[-1]
        rows = tokens.reshape(math.prod(batch), length).long()
        if lengths is not None:
            _check_integers("lengths", lengths, self.device)
            if lengths.shape != batch:
                raise ValueError(
                    f"CharRNN: lengths must have shape {tuple(batch)}, as tokens except for the last dimension, "
                    f"got {tuple(lengths.shape)}"
                )
            lengths = lengths.reshape(-1).long()
            if _inputs._validates(self, lengths) and bool(((lengths < 0) | (lengths > length)).any()):
                raise ValueError(f"CharRNN: lengths must lie in 0 ... {length}, got {lengths.tolist()}")
            rows = rows.masked_fill(torch.arange(length, device=rows.device) >= lengths[:, None], 0)
        return batch, self._known("tokens", rows), lengths

    def _checked(self, state: CharState | None, batch: int) -> CharState:
        if state is None:
            return self.begin(batch)
        if len(state.last) != batch:
            raise ValueError(f"CharRNN: state must be of as many sequences as tokens, {batch}, got {len(state.last)}")
        return state

    def _known(self, name: str, tokens: Tensor) -> Tensor:
        """tokens, which are all of the vocabulary under validate_args; else with no -1, which stands for none."""
        if not _inputs._validates(self, tokens):
            return tokens.masked_fill(tokens < 0, len(self.vocabulary))
        unknown = (tokens < 0) | (tokens >= len(self.vocabulary))
        if bool(unknown.any()):
            index = tuple(unknown.nonzero()[0].tolist())
            raise ValueError(
                f"CharRNN: {name} must lie in 0 ... {len(self.vocabulary) - 1}, the vocabulary's symbols, "
                f"got {tokens[index].item()} at index {index}"
            )
        return tokens

    @torch.no_grad()
    def _measure(self, tokens: Tensor, lengths: Tensor | None, state: CharState | None) -> tuple[float, int, int]:
        """The nats, tokens and characters of sequences, computed in bounded memory."""
        _, rows, ends = self._check_tokens(tokens, lengths)
        ends = torch.full_like(rows[:, :1], rows.shape[1])[:, 0] if ends is None else ends
        state = self._checked(state, len(rows))
        counts = torch.arange(rows.shape[1], device=rows.device) < ends[:, None]
        size, nats = max(1, _MEASURED_TOKENS // max(1, len(rows))), 0.0
        for start in range(0, rows.shape[1], size):
            piece = rows[:, start : start + size]
            own = (ends - start).clamp(0, piece.shape[1])
            log_prob, state = self.log_prob(piece, own, state=state, return_state=True, per_token=True)
            nats -= log_prob.sum(dtype=torch.float64).item()
        total = int(counts.sum())
        if total == 0:
            raise ValueError("CharRNN: tokens must have one that counts at least, got none")
        return nats, total, int((self.vocabulary.characters(rows) & counts).sum())

    def perplexity(self, tokens: Tensor, lengths: Tensor | None = None, *, state: CharState | None = None) -> float:
        """exp of the mean nats per token, over all tokens of all sequences; the arguments are those of ``log_prob``.

        Put a model with dropout into evaluation mode first.
        """
        nats, count, _ = self._measure(tokens, lengths, state)
        return math.exp(nats / count)

    def bits_per_character(
        self, tokens: Tensor, lengths: Tensor | None = None, *, state: CharState | None = None
    ) -> float:
        """Mean bits per character over all sequences; the arguments are those of ``log_prob``.

        With the vocabulary "bytes" a character is one of UTF-8, which has one or more bytes; else it is a symbol.
        """
        nats, _, characters = self._measure(tokens, lengths, state)
        return nats / math.log(2) / max(1, characters)

    # Sampling.

    @torch.no_grad()
    def sampling(
        self,
        n: int,
        length: int,
        *,
        prompt: str | bytes | Sequence[str] | Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        stop: str | int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        first_index: int = 0,
        state: CharState | None = None,
    ) -> CharSampling:
        """Starts a draw of the same samples in steps; arguments and errors are those of ``sample``.

        It is for long texts: look at what is drawn already, stop, and continue later.
        """
        for name, value in (("n", n), ("length", length), ("first_index", first_index)):
            if not is_integer(value) or value < 0:
                raise ValueError(f"CharRNN: {name} must be an integer >= 0, got {value!r}")
        if not (is_real(temperature) and 0 < temperature < math.inf):
            raise ValueError(f"CharRNN: temperature must be positive and finite, got {temperature!r}")
        symbols = len(self.vocabulary)
        if top_k is not None and (not is_integer(top_k) or not 1 <= top_k <= symbols):
            raise ValueError(
                f"CharRNN: top_k must be an integer in 1 ... {symbols}, the vocabulary's size, or None, got {top_k!r}"
            )
        if top_p is not None and not (is_real(top_p) and 0 < top_p <= 1):
            raise ValueError(f"CharRNN: top_p must be a number in (0, 1] or None, got {top_p!r}")
        n, first_index = int(n), _inputs.first_row("CharRNN", first_index, int(n))
        if state is not None and state.last.shape != (n,):
            raise ValueError(f"CharRNN: state must be of n = {n} sequences, got {len(state.last)}")
        if state is not None and state.seed is not None and seed is None and generator is None:
            seed = state.seed
            if first_index not in (0, state.first_index):
                raise ValueError(
                    f"CharRNN: first_index must be that of the state whose draws go on, {state.first_index}, or 0, "
                    f"got {first_index}"
                )
            first_index = state.first_index
        state = replace(
            self.begin(n) if state is None else state.detach(),
            seed=_inputs.draw_seed("CharRNN", seed, generator),
            first_index=first_index,
        )
        draws = {
            "stop_token": self._token(stop),
            "temperature": float(temperature),
            "top_k": 0 if top_k is None else int(top_k),
            "top_p": 1.0 if top_p is None else float(top_p),
        }
        return CharSampling(self, state, *self._check_prompt(n, prompt, prompt_lengths), int(length), draws)

    def sample(
        self,
        n: int,
        length: int,
        *,
        prompt: str | bytes | Sequence[str] | Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        stop: str | int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        first_index: int = 0,
        state: CharState | None = None,
        return_state: bool = False,
        return_log_prob: bool = False,
        progress: bool = False,
    ) -> tuple[Any, ...]:
        """Draws how n sequences continue.

        Row i is the same whatever n and the other rows' prompts are: it depends only on the seed, first_index + i and
        its own prompt. ``sample(n, 500)`` equals ``sample(n, 200, return_state=True)`` followed by 300 more tokens from
        that state, bit for bit.

        Args:
            n: how many sequences.
            length: how many tokens to draw at most in each sequence; the prompt does not count.
            prompt: what each sequence starts with, or continues with after ``state``, without being drawn: a text, or
                tokens (P), the same for all, or (n, P).
            prompt_lengths: (n) integers in 0 ... P: how many tokens of each prompt count.
            stop: a symbol, or its token: a sequence that draws it draws nothing more.
            temperature: > 0; divides the logits.
            top_k: draw only from the k likeliest symbols.
            top_p: draw only from the smallest set of likeliest symbols whose total probability, at this temperature, is
                at least top_p.
            seed: 0 ... 2^63 - 1. None takes the state's seed if it has one, else one number from generator.
            generator: the seed is drawn from it; None is torch's default generator. Not used if seed is given.
            first_index: number of the first row.
            state: what an earlier call, or ``log_prob``, returned. A finished sequence stays as it is.
            return_state: also return the state after the last token, a :class:`CharState`.
            return_log_prob: also return the log-probability of the drawn tokens, (n), at temperature 1 and without
                top_k and top_p.
            progress: show a progress bar, on a terminal or in a notebook.

        Returns:
            tokens (n, length) int64, padded with stop, or with 0; lengths (n) int64, how many tokens were drawn,
            including the stop token; then the log-probability and the state if they were requested.

        Raises:
            ValueError: for a wrong argument.
        """
        sampling = self.sampling(
            n, length, prompt=prompt, prompt_lengths=prompt_lengths, stop=stop, temperature=temperature, top_k=top_k,
            top_p=top_p, seed=seed, generator=generator, first_index=first_index, state=state,
        )  # fmt: skip
        positions = self._positions_of_a_call(int(n))
        with progress_bar(total=sampling.positions, unit="token", unit_scale=True, show=progress) as bar:
            while not sampling.done:
                before = sampling.position
                sampling.advance(positions)
                bar.update(sampling.position - before)
        result: list[Any] = [sampling.tokens, sampling.lengths]
        if return_log_prob:
            result.append(sampling.log_prob)
        if return_state:
            result.append(sampling.state)
        return tuple(result)

    def _positions_of_a_call(self, rows: int) -> int:
        most = _CALL_MULTIPLY_ADDS_ON_CUDA if self.device.type == "cuda" else _CALL_MULTIPLY_ADDS
        return max(1, most // (self.rnn.multiply_adds * max(1, rows)))

    def _token(self, stop: str | int | None) -> int:
        if stop is None:
            return -1
        if is_integer(stop):
            if not 0 <= stop < len(self.vocabulary):
                raise ValueError(f"CharRNN: stop must lie in 0 ... {len(self.vocabulary) - 1}, got {stop}")
            return int(stop)
        tokens = self.vocabulary.encode(stop if self.vocabulary.is_bytes else [stop])
        if len(tokens) != 1:
            raise ValueError(f"CharRNN: stop must be one symbol of the vocabulary, got {stop!r}")
        return int(tokens)

    def _check_prompt(
        self, n: int, prompt: str | bytes | Sequence[str] | Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The prompts (n, P), with zeros where they do not count, and their lengths (n)."""
        if prompt is None:
            if lengths is not None:
                raise ValueError("CharRNN: prompt_lengths must come with a prompt, got no prompt")
            none = torch.zeros(n, 0, dtype=torch.int64, device=self.device)
            return none, none.sum(1)
        tokens = prompt if isinstance(prompt, Tensor) else self.encode(prompt)
        _check_integers("prompt", tokens, self.device)
        if tokens.dim() == 1:
            tokens = tokens.expand(n, -1)
        if tokens.dim() != 2 or len(tokens) != n:
            raise ValueError(f"CharRNN: prompt must have shape (P) or (n, P) with n = {n}, got {tuple(tokens.shape)}")
        most = tokens.shape[1]
        if lengths is None:
            lengths = torch.full((n,), most, device=self.device)
        _check_integers("prompt_lengths", lengths, self.device)
        if lengths.shape != (n,) or bool(((lengths < 0) | (lengths > most)).any()):
            raise ValueError(
                f"CharRNN: prompt_lengths must be {n} integers in 0 ... {most}, the prompt's length, "
                f"got {lengths.tolist()}"
            )
        lengths = lengths.long()
        counts = torch.arange(most, device=self.device) < lengths[:, None]
        tokens = tokens.long().masked_fill(~counts, 0)
        return self._known("prompt", tokens), lengths

    # Files.

    #: ``_files`` reads these two of every model: a CharRNN has no order and no standardisation.
    order = None
    standardization = None

    def _unsaved_structure(self) -> None:
        """``config`` describes the whole structure."""

    def config(self) -> dict[str, Any]:
        """The model's arguments as JSON holds them, except the device and the vocabulary."""
        return {
            "hidden_features": self.rnn.hidden_size,
            "cell": self.rnn.cell,
            "num_layers": self.rnn.num_layers,
            "dropout": self.rnn.dropout,
            **({"readout_dropout": self.readout_dropout} if self.readout_dropout else {}),
            "embedding_features": None if self.embedding is None else self.embedding.embedding_dim,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def _check_loaded(self, tensors: dict[str, Tensor]) -> None:
        """Every value of a tensor is valid."""

    def save(self, directory: str | Path) -> None:
        """Writes model.safetensors, with the vocabulary in its metadata, and config.json into directory."""
        _files.save(self, Path(directory), {"vocabulary": self.vocabulary.config()})

    def load(self, directory: str | Path) -> Self:
        """Reads what ``save`` wrote into this model, and returns it. Nothing is unpickled.

        ``ar_fast.models.load`` also makes the model.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file is truncated or not a model's, or of a model with other arguments. This model does
                not change then.
        """
        _files.load(self, Path(directory), {"vocabulary": self.vocabulary.config()})
        return self

    def extra_repr(self) -> str:
        return f"{len(self.vocabulary)} symbols"


def _check_integers(name: str, tensor: Tensor, device: torch.device) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"CharRNN: {name} must be a tensor, got {type(tensor).__name__}")
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"CharRNN: {name} must be integers, got {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"CharRNN: {name} must be on the model's device, {device}, got {tensor.device}")
