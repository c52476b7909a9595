"""ar-fast generate: text from a CharRNN, as it is drawn, which goes on later from a file."""

from __future__ import annotations

import codecs
import json
import sys
import threading
from pathlib import Path
from typing import Any

import click
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..models import CharRNN, CharState
from . import outputs, runs
from .values import Characters

_STATE = "ar_fast.char_state 1"
# Tokens that are drawn between two looks at the terminal.
_STREAMED = 8
_SILENT = 1024


def write_state(path: Path, state: CharState, pending: bytes) -> None:
    """In one safetensors file; ``pending`` are the bytes of a character that is not complete yet."""
    tensors = {name: value.cpu().contiguous() for name, value in vars(state).items() if isinstance(value, torch.Tensor)}
    numbers = {"seed": state.seed, "first_index": state.first_index}
    metadata = {"format": _STATE, "numbers": json.dumps(numbers), "pending": pending.hex()}
    with outputs.whole(path) as beside:
        beside.write_bytes(save(tensors, metadata))


def read_state(path: Path, model: CharRNN) -> tuple[CharState, bytes]:
    """What ``write_state`` wrote, for this model.

    Raises:
        ValueError: if the file is another one, or of another model.
    """
    own = model.begin(1)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _STATE:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {_STATE!r}")
            tensors = {name: file.get_tensor(name).to(model.device) for name in file.keys()}  # noqa: SIM118
            pending = bytes.fromhex(metadata["pending"])
            state = CharState(**{"cell_state": None, **tensors, **json.loads(metadata["numbers"])})
        for name, value in vars(own).items():
            given = getattr(state, name)
            if isinstance(value, torch.Tensor) and (given is None or given.shape != value.shape):
                raise ValueError(f"{name} must have shape {tuple(value.shape)}, as of the model")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--state: {path} must be a state of this model that generate wrote: {error}") from None
    return state, pending


class _Stream:
    """Writes tokens to the terminal, bytes as whole UTF-8 sequences."""

    def __init__(self, values: Characters, shown: bool, pending: bytes) -> None:
        self.values, self.shown, self.text = values, shown, ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._decoder.decode(pending)

    @property
    def pending(self) -> bytes:
        return self._decoder.getstate()[0]

    def write(self, tokens: torch.Tensor, *, last: bool = False) -> None:
        if self.values.vocabulary.is_bytes:
            text = self._decoder.decode(bytes(tokens.tolist()), final=last)
        else:
            text = self.values.decode(tokens)
        self.text += text
        if self.shown:
            sys.stdout.write(text)
            sys.stdout.flush()


@click.command()
@click.argument("run")
@click.option("--prompt", default="", help="What the text begins with, or goes on with after --state.")
@click.option("--length", type=click.IntRange(1), default=400, help="How many tokens to draw.")
@click.option("--temperature", type=click.FloatRange(0, min_open=True), default=1.0, help="Below 1: likelier text.")
@click.option("--top-k", type=click.IntRange(1), help="Draw from the k likeliest symbols only.")
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), help="Draw from the likeliest symbols of this mass."
)
@click.option("--stop", help="A symbol at which the text ends.")
@click.option("--stream", is_flag=True, help="Show the text as it is drawn.")
@click.option("--state", type=click.Path(path_type=Path), help="A file: go on from it if it exists, and write it.")
@click.option("--out", type=click.Path(path_type=Path), help="A .txt file; by default the terminal.")
@click.option("--device", default="cpu", help="cpu, cuda or cuda:0.")
@click.option("--dtype", type=click.Choice(list(runs.DTYPES)), help="Of the parameters; by default the model's.")
@click.option("--threads", type=click.IntRange(1, runs.MOST_THREADS), help="CPU threads; by default torch's.")
@click.option("--seed", type=click.IntRange(0), help="By default 0, or that of the state.")
def generate(run, prompt, length, temperature, top_k, top_p, stop, stream, state, out, device, dtype, threads, seed):
    """Writes text with a char-rnn.

    Ctrl-C ends it; with --state FILE the next call goes on from there, as if it had never ended.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    outputs.check(out, (".txt",))
    opened = runs.open_run(run, device, dtype)
    model: Any = opened.model
    if not isinstance(opened.values, Characters):
        raise ValueError(f"RUN: generate is for texts, got the model of events, {run}: ar-fast sample {run}")
    before, pending = read_state(state, model) if state is not None and state.exists() else (None, b"")
    if before is None and seed is None:
        seed = 0
    shown = _Stream(opened.values, stream or out is None, pending)
    shown.write(opened.values.encode(prompt))
    drawn, interrupted, current = 0, threading.Event(), before
    draws = {"stop": stop, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    with runs.signals(interrupted.set):
        while drawn < length and not interrupted.is_set():
            # Each piece goes on from the state of the one before: the memory does not grow with the length.
            piece = min(_STREAMED if stream else _SILENT, length - drawn)
            own = {"prompt": prompt or None, "seed": seed} if drawn == 0 else {}
            tokens, lengths, current = model.sample(1, piece, state=current, return_state=True, **draws, **own)
            shown.write(tokens[0, : lengths[0]])
            drawn += piece
            if bool(current.finished[0]):
                break
    if state is None:
        # What a state keeps may end within a character, which the next call completes.
        shown.write(torch.zeros(0, dtype=torch.int64), last=True)
    if shown.shown:
        click.echo()
    if out is not None:
        with outputs.whole(out) as beside:
            beside.write_text(shown.text, encoding="utf-8")
    if state is not None:
        write_state(state, current, shown.pending)
    if interrupted.is_set():
        raise KeyboardInterrupt(f"{drawn} tokens were drawn")
