"""DeepNADE models for the tests, and their network as it is written down."""

import itertools
import math

import torch

from ar_fast import heads, models, orderings, reference

LAYERS = [[13], [9, 7], [8, 7, 6]]


HEADS = {
    "Bernoulli": heads.Bernoulli(),
    "Categorical": heads.Categorical(3),
    "Categorical, each its own": heads.Categorical([2, 1, 4, 3]),
    "GaussianMixture": heads.GaussianMixture(2),
    "LogisticMixture": heads.LogisticMixture(2, levels=3),
}


DISCRETE = [name for name in HEADS if name != "GaussianMixture"]


def make(variables, hidden_features, *, dtype=torch.float64, activation="tanh", order="random", **options):
    if order == "random":
        order = orderings.random(variables, seed=7)
    model = models.DeepNADE(variables, hidden_features, activation, order=order, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.8 * torch.randn(parameter.shape, generator=generator))
    return model


def all_events(head, variables):
    if isinstance(head, heads.Categorical):
        sizes = head.counts(variables)
        sizes = sizes if isinstance(sizes, list) else [sizes] * variables
    else:
        sizes = [head.levels or 2] * variables
    return torch.tensor(list(itertools.product(*(range(size) for size in sizes))))


def network(model, x, observed, context=None):
    """The network as it is written down: (B, R_out) parameters given the observed part of each row of x."""
    if isinstance(model.head, heads.Categorical):
        columns = [
            torch.nn.functional.one_hot(x[:, i], int(model.values[i])) * observed[:, i, None]
            for i in range(model.variables)
        ]
        inputs = torch.cat(columns, 1).to(model.dtype)
    else:
        inputs = torch.where(observed, model.head.encode(x, model.dtype), 0.0).to(model.dtype)
    hidden = model.in_bias + inputs @ model.in_weight + observed.to(model.dtype) @ model.mask_weight
    if context is not None:
        hidden = hidden + context @ model.context_weight.T
    hidden = reference.ACTIVATIONS[model.activation](hidden)
    for layer in model.layers:
        hidden = reference.ACTIVATIONS[model.activation](layer(hidden))
    return hidden @ model.out_weight.T + model.out_bias


def terms_given(model, x, observed, context=None):
    """log p(x_i | observed part of x) of every variable, (B, D)."""
    parameters = network(model, x, observed, context)
    if isinstance(model.counts, int):
        parameters = parameters.unflatten(1, (model.variables, model.counts))
    return model.head.log_prob(parameters, x)


def size_probability(left, variables):
    """Of n variables left: n - 1 of the others have a uniform number below u^2, u uniform."""
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    of = [
        (math.comb(variables - 1, n - 1) * u ** (2 * (n - 1)) * (1 - u**2) ** (variables - n)).mean()
        for n in range(1, variables + 1)
    ]
    return torch.stack(of)[left - 1]
