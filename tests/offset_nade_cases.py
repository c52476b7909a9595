"""OffsetNADE models and events for the tests."""

import torch

from ar_fast import heads, models

MODEL_HEADS = {
    "Bernoulli": heads.Bernoulli(),
    "Categorical": heads.Categorical(3),
    "GaussianMixture": heads.GaussianMixture(2),
    "LogisticMixture": heads.LogisticMixture(2, levels=3),
}


EVENTS = [((7,), 3), ((3, 4), (2, 1)), ((3, 2, 3), 1)]


def make(event_shape, window, *, dtype=torch.float64, activation="tanh", hidden_features=9, **options):
    model = models.OffsetNADE(event_shape, hidden_features, window, activation, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
    return model


def draw_events(model, count):
    generator = torch.Generator().manual_seed(3)
    if isinstance(model.head, heads.GaussianMixture):
        events = torch.randn(count, *model.event_shape, dtype=torch.float64, generator=generator)
    else:
        most = model.head.levels or (model.counts if isinstance(model.head, heads.Categorical) else 2)
        events = torch.randint(most, (count, *model.event_shape), generator=generator)
    return events.to(model.device)
