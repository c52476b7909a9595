"""RNN and CharRNN models and sequences for the tests."""

import torch

from ar_fast import heads, models, reference

# cell, num_layers
STACKS = [("gru", 1), ("gru", 3), ("lstm", 1), ("lstm", 2), ("rnn", 2), ("rnn_relu", 1)]
SYMBOLS = "abcde"
HEADS = {
    "Bernoulli": heads.Bernoulli(),
    "Categorical": heads.Categorical(3),
    "GaussianMixture": heads.GaussianMixture(2),
    "LogisticMixture": heads.LogisticMixture(2, levels=4),
}


def randomize(model, gain=1.0):
    """Parameters with which every earlier value matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = gain * parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def make_rnn(event_shape, cell="gru", num_layers=1, *, hidden_features=7, dtype=torch.float64, gain=1.0, **options):
    # Real draws feed back: without a bound on the states they grow without end.
    gain = 0.4 * gain if cell == "rnn_relu" else gain
    return randomize(models.RNN(event_shape, hidden_features, cell, num_layers, dtype=dtype, **options), gain)


def make_char_rnn(cell="gru", num_layers=1, *, vocabulary=SYMBOLS, hidden_features=7, dtype=torch.float64, **options):
    return randomize(models.CharRNN(vocabulary, hidden_features, cell, num_layers, dtype=dtype, **options), 2.0)


def reference_of(model):
    features = None if model.embedding is None else model.embedding.embedding_dim
    rnn = model.rnn
    plain = reference.ReferenceCharRNN(len(model.vocabulary), rnn.hidden_size, rnn.cell, rnn.num_layers, features)
    plain = plain.to(model.device, model.dtype)
    plain.load_state_dict(model.state_dict())
    return plain


def random_tokens(*shape, symbols=5, seed=0):
    return torch.randint(symbols, shape, generator=torch.Generator().manual_seed(seed))
