"""Autoregressive models: log_prob, gradients, sampling and completion."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from .. import heads
from . import _files
from .armlp import ARMLP
from .base import AutoregressiveModel, State
from .char_rnn import CharRNN
from .char_sampling import CharSampling, CharState
from .deep_nade import DeepNADE
from .distribution import AutoregressiveDistribution
from .ensemble import Ensemble
from .fvsbn import FVSBN
from .made import MADE
from .nade import NADE, RNADE
from .offset_nade import OffsetNADE
from .rnn import RNN
from .sampling import Sampling
from .vocabulary import Vocabulary

__all__ = [
    "ARMLP",
    "FVSBN",
    "MADE",
    "NADE",
    "RNADE",
    "RNN",
    "AutoregressiveDistribution",
    "AutoregressiveModel",
    "CharRNN",
    "CharSampling",
    "CharState",
    "DeepNADE",
    "Ensemble",
    "OffsetNADE",
    "Sampling",
    "State",
    "Vocabulary",
    "load",
]

_MODELS = {
    "ARMLP": ARMLP,
    "CharRNN": CharRNN,
    "DeepNADE": DeepNADE,
    "FVSBN": FVSBN,
    "MADE": MADE,
    "NADE": NADE,
    "OffsetNADE": OffsetNADE,
    "RNADE": RNADE,
    "RNN": RNN,
}
_DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}


def load(directory: str | Path, device: torch.device | str | None = None) -> AutoregressiveModel | CharRNN | Ensemble:
    """The model, or the ensemble, that ``model.save(directory)`` wrote.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is truncated or not a model's.
    """
    stored = _files.read_config(Path(directory))
    name = stored.get("model")
    if name == "Ensemble":
        members: list[Any] = [load(member, device) for member in _files.members(Path(directory), stored)]
        return Ensemble(members)
    if name not in _MODELS:
        raise ValueError(f"load: model must be one of {', '.join(_MODELS)}, got {name!r} in {directory}")
    arguments = dict(stored["config"])
    try:
        arguments["dtype"] = _DTYPES[arguments["dtype"]]
        if name == "CharRNN":
            arguments["vocabulary"] = _files.read_metadata(Path(directory), "vocabulary")
        else:
            arguments["head"] = heads.from_config(arguments["head"])
        if stored["order"] == "permutation":
            # Shapes can depend on the order, if variables differ in their number of categories.
            arguments["order"] = _files.read_order(Path(directory))
        _files.check_sizes(_MODELS[name], arguments, stored["config"], Path(directory))
        if stored["order"] == "permutation" and arguments["order"] is None:
            # A model of several orders stores them all, by another name, and the first of them may be any.
            arguments["order"] = torch.arange(math.prod(arguments["event_shape"]))
        model = _MODELS[name](**arguments, device=device)
    except _files.WRONG as error:
        raise ValueError(f"load: config.json must describe a {name}, got {directory}: {error!r}") from None
    return model.load(directory)
