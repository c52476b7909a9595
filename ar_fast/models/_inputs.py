"""Checks of a model's inputs, and their flattening to rows. Each error names the argument, the rule and the given
value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._integers import integers, is_integer

if TYPE_CHECKING:
    from ..flows.maf import MAF
    from .base import AutoregressiveModel
    from .char_rnn import CharRNN


def event_shape(name: str, given: int | Sequence[int]) -> torch.Size:
    shape = integers(given)
    if not shape or min(shape) < 1:
        raise ValueError(f"{name}: event_shape must be one or more positive integers, got {given!r}")
    return torch.Size(shape)


def sample_shape(name: str, argument: str, given: int | Sequence[int]) -> torch.Size:
    shape = integers(given)
    if shape is None or min(shape, default=0) < 0:
        raise ValueError(f"{name}: {argument} must be an integer >= 0 or a shape of those, got {given!r}")
    return torch.Size(shape)


def first_row(name: str, first_index: int, rows: int, contexts: int = 1) -> int:
    """The number of the first of ``rows`` rows, where each sample has a row for each context."""
    if not is_integer(first_index) or first_index < 0:
        raise ValueError(f"{name}: first_index must be an integer >= 0, got {first_index!r}")
    first = int(first_index) * contexts
    if first + rows >= 2**63:
        raise ValueError(
            f"{name}: first_index must leave the numbers of all rows below 2^63, got {first_index} for {rows} rows"
            f"{f' of {contexts} contexts' if contexts > 1 else ''}"
        )
    return first


def draw_seed(name: str, seed: int | None, generator: torch.Generator | None) -> int:
    if seed is None:
        device = "cpu" if generator is None else generator.device
        return int(torch.randint(2**63 - 1, (), generator=generator, device=device))
    if generator is not None:
        raise ValueError(f"{name}: seed and generator must not both be given, got seed {seed!r}")
    if not is_integer(seed) or not 0 <= seed < 2**63:
        raise ValueError(f"{name}: seed must be an integer in 0 ... 2^63 - 1, got {seed!r}")
    return int(seed)


def _validates(model: AutoregressiveModel | CharRNN | MAF, x: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None:
        return False
    if x.device.type == "cpu":
        return __debug__ if model.validate_args is None else model.validate_args
    return bool(model.validate_args) and not _capturing(x)


def _capturing(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def check_values(
    model: AutoregressiveModel, name: str, x: Tensor, where: Tensor | None = None, variable: int | None = None
) -> None:
    """Raises if a value of x, or of the part of x selected by ``where``, is outside the head's support; NaN always is.
    x holds events, or values of one variable."""
    if x.dtype == torch.bool or not _validates(model, x):
        return
    upper = None
    if isinstance(model.counts, list):
        upper = torch.tensor(model.counts, device=x.device)
    if variable is None:
        rows = x.reshape(-1, model.variables)
        if where is None and model.head.supports(rows, upper):
            return
        violation = model.head.violation(rows, upper).reshape(x.shape)
    else:
        violation = model.head.of(variable).violation(x, None if upper is None else upper[variable])
    if where is not None:
        violation = violation & where
    if bool(violation.any()):
        index = tuple(violation.nonzero()[0].tolist())
        head = model.head.of(_flat(model, index) if variable is None else variable)
        raise ValueError(
            f"{model._name}: {name} must be in the support of {head!r}, "
            f"{head.support(model.event_shape)}, got {x[index].item()} at index {index}"
        )


def check_tensor(model: AutoregressiveModel | MAF, name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{model._name}: {name} must be a tensor, got {type(tensor).__name__}")
    if tensor.device != model.device:
        raise ValueError(f"{model._name}: {name} must be on the model's device, {model.device}, got {tensor.device}")
    if not tensor.is_complex() and (
        not tensor.is_floating_point() or tensor.dtype in (model.dtype, model.compute_dtype) or _of_autocast(tensor)
    ):
        return
    raise ValueError(
        f"{model._name}: {name} must be bool, integer or of the model's dtype, {model.dtype}, got {tensor.dtype}"
    )


def _of_autocast(tensor: Tensor) -> bool:
    """Whether autocast is on and the tensor has the dtype that autocast gives to results, as the output of a network
    in front of the model has."""
    kind = tensor.device.type
    return torch.is_autocast_enabled(kind) and tensor.dtype == torch.get_autocast_dtype(kind)


def own_dtype(model: AutoregressiveModel | MAF, tensor: Tensor) -> Tensor:
    """The tensor in the compute dtype if only autocast made its dtype acceptable, else unchanged."""
    own = not tensor.is_floating_point() or tensor.dtype in (model.dtype, model.compute_dtype)
    return tensor if own else tensor.to(model.compute_dtype)


def check_context(model: AutoregressiveModel | MAF, context: Tensor | None) -> None:
    features = model.context_features
    if features == 0:
        if context is not None:
            raise ValueError(
                f"{model._name}: context must be None in a model without context_features, "
                f"got one of shape {tuple(context.shape)}"
            )
        return
    rule = f"context must have shape (*batch, {features}) in a model with {features} context_features"
    if context is None:
        raise ValueError(f"{model._name}: {rule}, got None")
    check_tensor(model, "context", context)
    if context.dim() == 0 or context.shape[-1] != features:
        raise ValueError(f"{model._name}: {rule}, got {tuple(context.shape)}")
    if not context.is_floating_point():
        raise ValueError(f"{model._name}: context must be of the model's dtype, {model.dtype}, got {context.dtype}")
    check_finite(model, "context", context)


def check_finite(model: AutoregressiveModel | MAF, name: str, tensor: Tensor) -> None:
    if _validates(model, tensor) and not bool(tensor.isfinite().all()):
        index = tuple((~tensor.isfinite()).nonzero()[0].tolist())
        raise ValueError(f"{model._name}: {name} must be finite, got {tensor[index].item()} at index {index}")


def flatten(model: AutoregressiveModel, x: Tensor, context: Tensor | None) -> tuple[torch.Size, Tensor, Tensor | None]:
    """The batch shape, x as (B, D) and its context as (B, C), after all checks."""
    model._settle()
    check_tensor(model, "x", x)
    dims = len(model.event_shape)
    if not _ends(x.shape, model.event_shape):
        raise ValueError(
            f"{model._name}: x must have shape (*batch, {', '.join(map(str, model.event_shape))}), got {tuple(x.shape)}"
        )
    check_context(model, context)
    check_values(model, "x", x)
    batch = x.shape[: x.dim() - dims]
    if context is not None:
        if not _ends(batch, context.shape[:-1]):
            raise ValueError(
                f"{model._name}: context must have shape (*context_batch, {model.context_features}) with "
                f"context_batch the last dimensions of the batch {tuple(batch)}, got {tuple(context.shape)}"
            )
        features = model.context_features
        context = context.expand(*batch, features).reshape(math.prod(batch), features).to(model.dtype)
    rows = own_dtype(model, x).reshape(math.prod(batch), model.variables)
    rows = model.head.encode(rows, model.compute_dtype)
    if model.standardization is not None:
        rows = model.standardization(rows, model.compute_dtype)
    return batch, rows, context


def flatten_known(
    model: AutoregressiveModel, given: Tensor | None, known: Tensor | None, clamp: bool, batch: torch.Size
) -> tuple[Tensor | None, Tensor | None]:
    """given as (B, D), encoded by the head in the compute dtype, and known as (B, D), after all checks."""
    if given is None and known is None:
        return None, None
    if given is None or known is None:
        missing = "given" if given is None else "known"
        raise ValueError(f"{model._name}: given and known must come together, got no {missing}")
    check_tensor(model, "given", given)
    check_tensor(model, "known", known)
    if known.dtype != torch.bool:
        raise ValueError(f"{model._name}: known must be bool, got {known.dtype}")
    full = batch + model.event_shape
    for name, tensor in (("given", given), ("known", known)):
        if not (_ends(tensor.shape, model.event_shape) and _ends(full, tensor.shape)):
            raise ValueError(
                f"{model._name}: {name} must have the event's shape {tuple(model.event_shape)}, preceded by none or "
                f"some of the last dimensions of {tuple(full[: len(batch)])}, got {tuple(tensor.shape)}"
            )
    if not (clamp or model._conditions_on_any_subset or _capturing(known)):
        check_prefix(
            model,
            ("known", "unknown"),
            known.reshape(-1, model.variables),
            "cannot condition on any other set of variables: DeepNADE does; clamp=True only fixes their values",
        )
    given, known = given.expand(full), known.expand(full)
    check_values(model, "given", given, known)
    rows = (math.prod(batch), model.variables)
    return model.head.encode(given.reshape(rows), model.compute_dtype).to(model.compute_dtype), known.reshape(rows)


def mean_and_std(model: AutoregressiveModel, data: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std of data's real variables, (*event_shape) in float64; 0 and 1 for the other variables."""
    if not isinstance(data, Tensor) or data.is_complex():
        raise TypeError(f"{model._name}: data must be a real tensor, got {getattr(data, 'dtype', type(data).__name__)}")
    shape = ", ".join(map(str, model.event_shape))
    if not _ends(data.shape, model.event_shape) or data.numel() == 0:
        raise ValueError(f"{model._name}: data must have shape (*batch, {shape}) and an event, got {tuple(data.shape)}")
    real = model._real.to(data.device)
    rows = data.reshape(-1, model.variables).double().masked_fill(~real, 0.0)
    for rule, bad in (
        ("finite", ~rows.isfinite().all(0)),
        ("of more than one value, to have a variance,", real & (rows == rows[0]).all(0)),
    ):
        if bool(bad.any()):
            index = int(bad.nonzero()[0])
            raise ValueError(
                f"{model._name}: data must be {rule} in every real variable, got {rows[:, index].tolist()[:3]} ... "
                f"for variable {index}"
            )
    std = rows.std(0, correction=0).masked_fill(~real, 1.0)
    return rows.mean(0).reshape(model.event_shape), std.reshape(model.event_shape)


def statistic(model: AutoregressiveModel, name: str, value: Tensor) -> Tensor:
    """mean or std as (D) float64 on the model's device, after all checks; 0 or 1 for variables that are not real."""
    if not isinstance(value, Tensor) or value.is_complex():
        raise TypeError(f"{model._name}: {name} must be a real tensor, got {type(value).__name__}")
    if value.shape != model.event_shape:
        raise ValueError(f"{model._name}: {name} must have shape {tuple(model.event_shape)}, got {tuple(value.shape)}")
    own = value.reshape(-1).to(model.device, torch.float64)
    own = own.masked_fill(~model._real.to(model.device), 0.0 if name == "mean" else 1.0)
    if not bool(own.isfinite().all()):
        index = int((~own.isfinite()).nonzero()[0])
        raise ValueError(f"{model._name}: {name} must be finite, got {own[index].item()} for variable {index}")
    return own


def statistics(
    model: AutoregressiveModel, data: Tensor | None, mean: Tensor | None, std: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The arguments of ``standardize`` as mean and std, (D) float64 on the model's device, after all checks."""
    if (data is None) == (mean is None) or (mean is None) != (std is None):
        given = [name for name, value in (("data", data), ("mean", mean), ("std", std)) if value is not None]
        raise ValueError(f"{model._name}: standardize takes data, or mean and std, got {' and '.join(given) or 'none'}")
    if data is not None:
        mean, std = mean_and_std(model, data)
    mean, std = (statistic(model, name, value) for name, value in (("mean", mean), ("std", std)))
    if not bool((std > 0).all()):
        index = int((std <= 0).nonzero()[0])
        raise ValueError(f"{model._name}: std must be positive, got {std[index].item()} for variable {index}")
    return mean, std


def _flat(model: AutoregressiveModel, index: tuple[int, ...]) -> int:
    """The variable of an index into (*batch, *event_shape)."""
    flat = 0
    for at, size in zip(index[len(index) - len(model.event_shape) :], model.event_shape, strict=True):
        flat = flat * size + at
    return flat


def observed_only(model: AutoregressiveModel, x: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """x with zeros (in standardised units), which every head supports, where it is missing; and observed as (B, D);
    after all checks."""
    check_tensor(model, "x", x)
    check_tensor(model, "observed", observed)
    if observed.dtype != torch.bool:
        raise ValueError(f"{model._name}: observed must be bool, got {observed.dtype}")
    if not (_ends(observed.shape, model.event_shape) and _ends(x.shape, observed.shape)):
        raise ValueError(
            f"{model._name}: observed must have the event's shape {tuple(model.event_shape)}, preceded by none or some "
            f"of the last dimensions of the batch of x of shape {tuple(x.shape)}, got {tuple(observed.shape)}"
        )
    observed = observed.expand(x.shape)
    if model.standardization is None:
        zeros = torch.zeros_like(x)
    else:
        # A smaller integer dtype might not be able to hold the mean.
        x = x if x.is_floating_point() else x.long()
        zeros = model.standardization.shift.reshape(model.event_shape).to(x.dtype).expand_as(x)
    return torch.where(observed, x, zeros), observed.reshape(-1, model.variables)


def check_prefix(model: AutoregressiveModel, names: tuple[str, str], mask: Tensor, otherwise: str) -> None:
    """Raises if mask (B, D) is not a prefix of the model's order; names are the words for true and for false."""
    by_position = model._by_position(mask, 1)
    gaps = (by_position[:, 1:] & ~by_position[:, :-1]).nonzero()
    if gaps.numel():
        event, position = gaps[0].tolist()
        raise ValueError(
            f"{model._name}: {names[0]} must be a prefix of the model's order, got position {position + 1} {names[0]} "
            f"and position {position} {names[1]} in event {event}. A model of one fixed order {otherwise}"
        )


def _ends(shape: torch.Size, suffix: torch.Size) -> bool:
    """Whether shape ends with the dimensions of suffix."""
    return len(suffix) <= len(shape) and shape[len(shape) - len(suffix) :] == suffix
