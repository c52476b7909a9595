"""Model directories: model.safetensors and config.json. Nothing is unpickled."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

from .._integers import integers
from .._version import __version__

if TYPE_CHECKING:
    from ..flows import MAF
    from .base import AutoregressiveModel
    from .char_rnn import CharRNN

FORMAT = "ar_fast.model"
FORMAT_VERSION = 1


def description(model: AutoregressiveModel | CharRNN | MAF) -> dict[str, Any]:
    """config.json."""
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "ar_fast_version": __version__,
        "model": type(model).__name__,
        "order": "identity" if model.order is None else "permutation",
        "config": model.config(),
    }
    structure = model._unsaved_structure()
    if structure is not None:
        description["structure"] = hashlib.sha256(json.dumps(structure).encode()).hexdigest()[:16]
    return description


def content(tensor: Tensor) -> bytes:
    """The elements as they lie in memory, without numpy."""
    tensor = tensor.detach().cpu().contiguous()
    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes)


def digest(model: AutoregressiveModel | CharRNN | MAF, others: Mapping[str, Tensor | None] | None = None) -> bytes:
    """SHA-256 of a model's arguments and tensors, and of other tensors; the version of ar_fast does not matter."""
    described = description(model)
    del described["ar_fast_version"]
    found = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    tensors = model.state_dict() | dict(others or {})
    for name, tensor in sorted(tensors.items()):
        if tensor is not None:
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(content(tensor))
    return found.digest()


def save(model: AutoregressiveModel | CharRNN | MAF, directory: Path, metadata: dict[str, Any] | None = None) -> None:
    """Each value of ``metadata`` is written as JSON into the file of the weights."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    _check_separate(tensors)
    # Written under temporary names, so that an interrupted save leaves the old files.
    weights, config = directory / "model.safetensors.tmp", directory / "config.json.tmp"
    try:
        # Not save_file: it writes to a file of a random name, which stays where the process is killed.
        weights.write_bytes(serialize(tensors, {k: json.dumps(v) for k, v in (metadata or {}).items()} or None))
        config.write_text(json.dumps(description(model), indent=2) + "\n", encoding="utf-8")
        os.replace(weights, directory / "model.safetensors")
        os.replace(config, directory / "config.json")
    finally:
        weights.unlink(missing_ok=True)
        config.unlink(missing_ok=True)


def _check_separate(tensors: dict[str, Tensor]) -> None:
    """Raises if two contiguous tensors share memory, which the file format cannot express."""
    spans = sorted((tensor.data_ptr(), tensor.nbytes, name) for name, tensor in tensors.items() if tensor.numel())
    for (start, size, name), (next_start, _, next_name) in itertools.pairwise(spans):
        if next_start < start + size:
            names = " and ".join(sorted((name, next_name)))
            raise ValueError(
                f"save: parameters and buffers must not share memory, got tied {names}: the file would hold them twice "
                "and a loaded model would not tie them; untie them before, as by copy.deepcopy of one"
            )


def read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"load: directory must hold config.json and model.safetensors, got {directory}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"load: config.json must be JSON, got {path}: {error}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"load: config.json must be that of an ar_fast model, got {path}")
    if config.get("format_version") != FORMAT_VERSION:
        given = config.get("format_version")
        raise ValueError(f"load: format_version must be {FORMAT_VERSION}, got {given!r} in {path}")
    if not isinstance(config.get("config"), dict) or config.get("order") not in ("identity", "permutation"):
        raise ValueError(f"load: config.json must hold a model's 'config' and 'order', got {sorted(config)} in {path}")
    return config


def save_ensemble(models: Iterable[AutoregressiveModel], directory: Path) -> None:
    """Writes one directory per model, and a config.json that says how many there are."""
    count = 0
    for model in models:
        save(model, directory / f"member_{count}")
        count += 1
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "ar_fast_version": __version__,
        "model": "Ensemble",
        "order": "identity",
        "config": {"members": count},
    }
    config = directory / "config.json.tmp"
    config.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    os.replace(config, directory / "config.json")


def members(directory: Path, stored: dict[str, Any]) -> list[Path]:
    """The directories of an ensemble's models."""
    count = stored["config"].get("members")
    if stored.get("model") != "Ensemble" or not isinstance(count, int) or count < 1:
        raise ValueError(f"load: config.json must describe an Ensemble, got {stored.get('model')!r} in {directory}")
    # Before a list of that many is made.
    if not (directory / f"member_{count - 1}").is_dir():
        raise FileNotFoundError(f"load: directory must hold member_0 ... member_{count - 1}, got {directory}")
    return [directory / f"member_{index}" for index in range(count)]


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    path = directory / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"load: directory must hold config.json and model.safetensors, got {directory}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"load: model.safetensors must be a whole safetensors file, got {path}: {error}") from None


def read_metadata(directory: Path, key: str) -> Any:
    """The value that ``save`` wrote under a key."""
    path = directory / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"load: directory must hold config.json and model.safetensors, got {directory}")
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {})[key])
    except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as error:
        raise ValueError(f"load: model.safetensors must have {key!r} in its metadata, got {path}: {error!r}") from None


def read_order(directory: Path) -> Tensor | None:
    return _read_tensors(directory).get("order")


# What a config may ask for of each size, whatever its file holds: so much costs little, and the error of the tensor
# that does not fit says more. Beyond it a size is at most the numbers in the file, since each unit has at least one.
_SMALL = {
    "hidden_features": 2**8, "features": 2**8, "context_features": 2**8, "embedding_features": 2**8, "categories": 2**8,
    "components": 2**8, "bins": 2**8, "window": 2**6, "event_shape": 2**8, "transforms": 2**5, "num_layers": 2**5,
    "n_masks": 2**7, "n_orders": 2**7,
}  # fmt: skip
_SMALL_PARAMETERS = 2**18
# Models whose weights are shared between variables may have more variables than numbers.
_SHARED, _MOST_VARIABLES = ("OffsetNADE", "RNN"), 2**23


def _sizes(config: object) -> Iterator[tuple[str, int]]:
    """The sizes in a config, wherever they stand in it, and their names."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if key in _SMALL and key != "event_shape":
            yield from ((key, size) for size in integers(value) or ())
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        yield from _sizes(value)


def check_sizes(
    make: Callable[..., nn.Module], arguments: dict[str, Any], config: dict[str, Any], directory: Path
) -> None:
    """Raises if a model would be larger than its file, before anything of that size is made.

    Raises:
        ValueError: if an argument, or the number of parameters, exceeds the numbers in model.safetensors.
    """
    path = directory / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"load: directory must hold config.json and model.safetensors, got {directory}")
    try:
        with safe_open(path, "pt") as file:
            held = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"load: model.safetensors must be a whole safetensors file, got {path}: {error}") from None
    sizes = list(_sizes(config))
    if "event_shape" in config:
        sizes.append(("event_shape", math.prod(integers(config["event_shape"]) or [0])))
    for key, size in sizes:
        shared = key == "event_shape" and getattr(make, "__name__", "") in _SHARED
        most = max(held, _MOST_VARIABLES if shared else _SMALL[key])
        if size > most:
            raise ValueError(f"{key} must be at most {most} with {held} numbers in model.safetensors, got {size}")
    # Networks between layers, before their masks are made: those of many layers and transforms take long together.
    widths = [integers(config.get(key)) or [] for key in ("features", "hidden_features", "features")]
    layers = itertools.pairwise(itertools.chain(*widths))
    least = sum(below * above for below, above in layers) * (integers(config.get("transforms")) or [1])[0]
    if least > max(held, _SMALL_PARAMETERS):
        raise ValueError(f"parameters must be at most the {held} numbers in model.safetensors, got {least} or more")
    # On the meta device parameters cost nothing.
    count = sum(parameter.numel() for parameter in make(**arguments, device="meta").parameters())
    if count > max(held, _SMALL_PARAMETERS):
        raise ValueError(f"parameters must be at most the {held} numbers in model.safetensors, got {count}")


# What wrong arguments of a model may raise.
WRONG = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, OverflowError, MemoryError)


def _check_equal(name: str, own: object, given: object, directory: Path) -> None:
    if own != given:
        raise ValueError(f"load: {name} must be {own!r} as in this model, got {given!r} in {directory}")


def read(model: AutoregressiveModel | CharRNN | MAF, directory: Path) -> dict[str, Tensor]:
    """The tensors of a stored model that was made like this one, after all checks."""
    given, own = read_config(directory), json.loads(json.dumps(description(model)))
    for key in ("model", "order"):
        _check_equal(key, own[key], given.get(key), directory)
    for key in sorted(own["config"].keys() | given["config"].keys()):
        _check_equal(key, own["config"].get(key), given["config"].get(key), directory)
    if "structure" in given:
        _check_equal("structure", own.get("structure"), given["structure"], directory)
    elif "structure" in own and model.context_features:
        raise ValueError(
            f"load: config.json must have the fingerprint of the degrees of a {type(model).__name__} with a context, "
            f"'structure', since they were others once, got none in {directory}: where those of the weights are known, "
            "make the model with them and give it the tensors by load_state_dict"
        )
    tensors, targets = _read_tensors(directory), model.state_dict()
    if model.standardization is not None and "standardization.shift" not in tensors:
        # The files were saved before models had a standardization.
        tensors |= model.standardization.none("standardization.")
    if tensors.keys() != targets.keys():
        raise ValueError(f"load: tensors must be {sorted(targets)}, got {sorted(tensors)} in {directory}")
    for name, target in targets.items():
        tensor = tensors[name]
        if tensor.shape != target.shape or tensor.dtype != target.dtype:
            raise ValueError(
                f"load: {name} must be {target.dtype} of shape {tuple(target.shape)}, "
                f"got {tensor.dtype} of shape {tuple(tensor.shape)} in {directory}"
            )
    model._check_loaded(tensors)
    return tensors


def load(model: AutoregressiveModel | CharRNN | MAF, directory: Path, metadata: dict[str, Any] | None = None) -> None:
    tensors = read(model, directory)
    for key, value in (metadata or {}).items():
        _check_equal(key, value, read_metadata(directory, key), directory)
    model.load_state_dict(tensors)
