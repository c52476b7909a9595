"""Random models of every kind, and events, contexts and known sets for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from model_cases import KINDS, SHARED_KINDS
from strategies import DTYPES, torch_seeds
from torch import Tensor

from ar_fast import heads, models, orderings

MODELS = [*KINDS, "RNADE", "Ensemble"]
BATCHES = [(), (0,), (1,), (5,), (2, 0, 3), (2, 3), (2, 1, 3)]
_batches = st.sampled_from(BATCHES)


@dataclass
class Case:
    """A model with events and what goes with them; context is None in a model without context_features."""

    kind: str
    model: models.AutoregressiveModel
    x: Tensor
    context: Tensor | None
    description: str

    @property
    def first(self) -> models.AutoregressiveModel:
        """The model itself, or a member of an ensemble."""
        return self.model.members[0] if isinstance(self.model, models.Ensemble) else self.model

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.description)


def _head(draw, kind: str, variables: int) -> heads.Head:
    if kind == "RNADE":
        return heads.GaussianMixture(draw(st.integers(1, 3)))
    one = [
        heads.Bernoulli(),
        heads.Categorical(draw(st.integers(2, 4))),
        heads.GaussianMixture(draw(st.integers(1, 3))),
        heads.LogisticMixture(draw(st.integers(1, 3)), levels=draw(st.sampled_from([2, 5, 256]))),
    ]
    head = draw(st.sampled_from([*one, "list", "mixed"]))
    if not isinstance(head, str):
        return head
    if kind in SHARED_KINDS:
        return one[1]
    if head == "list":
        return heads.Categorical([draw(st.integers(1, 4)) for _ in range(variables)])
    return heads.PerVariable([one[i % 4] for i in torch.randperm(4 * variables)[:variables].tolist()])


def _make(draw, kind: str, shape: tuple[int, ...], options: dict[str, Any]) -> models.AutoregressiveModel:
    hidden = draw(st.sampled_from([1, 2, 7, 8, 17]))
    activation = draw(st.sampled_from(["sigmoid", "tanh", "relu"]))
    layers = [hidden] * draw(st.integers(1, 3))
    if kind == "NADE":
        return models.NADE(shape, hidden, activation, **options)
    if kind == "RNADE":
        return models.RNADE(shape, hidden, components=options.pop("head").components, **options)
    if kind == "ARMLP":
        return models.ARMLP(shape, hidden, activation, **options)
    if kind == "FVSBN":
        return models.FVSBN(shape, **options)
    if kind == "DeepNADE":
        return models.DeepNADE(shape, layers, activation, **options)
    if kind == "OffsetNADE":
        window = draw(st.integers(1, 3)) if len(shape) == 1 else (draw(st.integers(0, 2)), draw(st.integers(1, 2)))
        return models.OffsetNADE(shape, hidden, window, activation, shared_output=draw(st.booleans()), **options)
    if kind == "RNN":
        return models.RNN(shape, hidden, draw(st.sampled_from(["gru", "rnn", "rnn_relu"])), **options)
    if kind == "RNN-LSTM":
        return models.RNN(shape, hidden, "lstm", 2, **options)
    options["direct"] = draw(st.booleans())
    if kind == "MADE-residual":
        return models.MADE(shape, [hidden] * 3, activation, residual=True, **options)
    if kind == "MADE-masks":
        model = models.MADE(shape, layers, activation, degrees="random", n_masks=3, n_orders=2, **options)
        model.use_mask(draw(st.integers(0, 2)))
        return model
    return models.MADE(shape, layers, activation, **options)


def events(model: models.AutoregressiveModel, *batch: int) -> Tensor:
    """(*batch, *event_shape) float64 in the support, with the ends of the range often."""
    uniform = torch.rand(*batch, model.variables, dtype=torch.float64)
    uniform = torch.where(torch.rand_like(uniform) < 0.2, uniform.round() * (1 - 1e-9), uniform)
    sizes = model.head.sizes(model.variables)
    columns = [
        3 * (uniform[..., i] - 0.5) if size is None else (size * uniform[..., i]).floor()
        for i, size in enumerate(sizes)
    ]
    return torch.stack(columns, -1).reshape(*batch, *model.event_shape)


@st.composite
def cases(draw, kind: str) -> Case:
    seed = draw(torch_seeds)
    torch.manual_seed(seed)
    shape = draw(st.sampled_from([(1,), (2,), (7,), (9,), (2, 3), (1, 4), (3, 2, 2)]))
    variables = math.prod(shape)
    orders = [None, list(range(variables)), orderings.reversed(shape), orderings.random(shape, seed=seed)]
    dtype = draw(st.sampled_from([torch.float64, torch.float64, *DTYPES]))
    context_features = draw(st.sampled_from([0, 0, 1, 3]))
    options = {"order": draw(st.sampled_from(orders)), "context_features": context_features, "dtype": dtype}
    options["head"] = head = _head(draw, "NADE" if kind == "Ensemble" else kind, variables)
    if kind == "Ensemble":
        first = models.NADE(shape, 5, **options)
        # Of two orders that begin with the same variables, which may be known.
        other = orderings.random(shape, seed=seed + 1) if options["order"] is None else options["order"]
        model = models.Ensemble([first, first.in_order(other)])
    else:
        first = model = _make(draw, kind, shape, options)
    # Real draws feed back into their own scale: with large weights they grow from one to the next without bound.
    bounded = all(own is not None for own in head.sizes(variables))
    size = draw(st.sampled_from([0.0, 0.3, 0.3, 1.0 if bounded else 0.1]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(size * torch.randn(parameter.shape))
    standardized = draw(st.booleans()) and kind != "Ensemble" and first.standardization is not None
    if standardized:
        model.standardize(mean=torch.randn(shape).double(), std=0.5 + torch.rand(shape).double())
    batch = draw(_batches)
    x = events(first, *batch)
    x = x.to(draw(st.sampled_from([dtype, first.compute_dtype])))
    if bounded and draw(st.booleans()):
        x = x.to(draw(st.sampled_from([torch.int64, torch.int16, torch.uint8])))
    if draw(st.booleans()) and batch and batch[0] > 1:
        x = x[:1].expand_as(x)
    context = None
    if context_features:
        own = batch[draw(st.integers(0, len(batch))) :]
        context = torch.randn(*own, context_features).to(draw(st.sampled_from([dtype, first.compute_dtype])))
    what = f"{kind} {head!r} {options['order']} {shape} {dtype} size {size}{' standardized' * standardized}"
    given = f"x {x.dtype} {list(x.shape)} context {None if context is None else (context.dtype, list(context.shape))}"
    return Case(kind, model, x, context, f"{what}; {given}; {type(first).__name__}({first.extra_repr()}), seed {seed}")


# ---- One argument broken: the method's name, its arguments, and what the error must say


@st.composite
def broken(draw, kind: str) -> tuple[Case, str, dict[str, Any], str]:
    case = draw(cases(kind))
    model, event = case.first, case.first.event_shape
    known = torch.ones(event, dtype=torch.bool)
    x = torch.zeros(2, *event)
    good = x.to(model.dtype) if model.dtype in (torch.float32, torch.float64) else x
    context = torch.zeros(model.context_features).to(model.dtype) if model.context_features else None
    sample = {"n": 2, "context": context, "seed": 1}
    ways = [
        ("log_prob", {"x": good[..., :-1], "context": context}, "x must have shape"),
        ("log_prob", {"x": good[0, ..., 0], "context": context}, "x must have shape"),
        ("log_prob", {"x": good.to(torch.complex64), "context": context}, "x must be bool, integer or"),
        ("log_prob", {"x": torch.full_like(good, math.nan), "context": context}, "x must be in the support"),
        (
            "log_prob",
            {"x": x.new_full((2, *event), math.inf).to(good.dtype), "context": context},
            "x must be in the supp",
        ),
        ("log_prob", {"x": [1.0], "context": context}, "x must be a tensor"),
        ("log_prob", {"x": good.to("meta"), "context": context}, "x must be on the model's device"),
        ("sample", {**sample, "n": -1}, "n must be"),
        ("sample", {**sample, "n": 1.5}, "n must be"),
        ("sample", {**sample, "n": (2, -1)}, "n must be"),
        ("sample", {**sample, "seed": -1}, "seed must be"),
        ("sample", {**sample, "seed": 2**63}, "seed must be"),
        ("sample", {**sample, "seed": 0.5}, "seed must be"),
        ("sample", {**sample, "generator": torch.Generator()}, "seed and generator must not both"),
        ("sample", {**sample, "temperature": 0.0}, "temperature must be"),
        ("sample", {**sample, "temperature": math.nan}, "temperature must be"),
        ("sample", {**sample, "temperature": math.inf}, "temperature must be"),
        ("sample", {**sample, "temperature": "1"}, "temperature must be"),
        ("sample", {**sample, "given": x[0].to(model.compute_dtype)}, "given and known must come together"),
        ("sample", {**sample, "known": known}, "given and known must come together"),
        ("sample", {**sample, "given": x[0].to(model.compute_dtype), "known": known.float()}, "known must be bool"),
        (
            "sample",
            {**sample, "given": x[0].to(model.compute_dtype), "known": known[..., None]},
            "known must have the ev",
        ),
        ("sample", {**sample, "first_index": -1}, "first_index must be"),
        ("sample", {**sample, "first_index": 2**63}, "first_index must leave"),
        ("sample", {**sample, "first_index": 2**63 - 1}, "first_index must leave"),
        ("sample", {**sample, "first_index": 0.0}, "first_index must be"),
    ]
    wrong = torch.zeros(model.context_features + 1).to(model.dtype)
    ways += [("log_prob", {"x": x.to(model.compute_dtype), "context": wrong}, "context must")]
    ways += [("sample", {**sample, "context": wrong}, "context must")]
    if context is not None:
        ways += [
            ("log_prob", {"x": x.to(model.compute_dtype), "context": context.expand(3, -1)}, "context must have shape"),
            ("log_prob", {"x": x.to(model.compute_dtype), "context": context.long()}, "context must be of the model's"),
            ("sample", {**sample, "context": context + math.nan}, "context must be finite"),
        ]
    method, arguments, message = draw(st.sampled_from(ways))
    return case, method, arguments, message
