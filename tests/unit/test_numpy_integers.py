"""Integers of numpy, and shapes, orders and degrees as its arrays, wherever Python's are taken."""

import json

import numpy as np
import pytest
import torch

import ar_fast
from ar_fast import Mask, functional, heads, models, nn, orderings
from ar_fast.tasks import training

pytestmark = pytest.mark.heavy

KINDS = [np.int64, np.int32, np.uint8]

HEADS = {
    "Categorical": lambda i: heads.Categorical(i(3)),
    "list": lambda i: heads.Categorical([i(2), i(3), i(1), i(4)]),
    "array": lambda i: heads.Categorical(np.array([2, 3, 1, 4], i)),
    "GaussianMixture": lambda i: heads.GaussianMixture(i(2)),
    "LogisticMixture": lambda i: heads.LogisticMixture(i(2), i(5)),
    "PerVariable": lambda i: heads.PerVariable(
        [
            heads.Categorical(i(3)),
            heads.LogisticMixture(i(1), levels=i(5)),
            heads.GaussianMixture(i(2)),
            heads.Bernoulli(),
        ]
    ),
}
MODELS = {
    "NADE": lambda i, **o: models.NADE(i(4), i(5), **o),
    "RNADE": lambda i, **o: models.RNADE(i(4), i(5), i(2), **o),
    "ARMLP": lambda i, **o: models.ARMLP((i(2), i(2)), i(5), **o),
    "FVSBN": lambda i, **o: models.FVSBN([i(2), i(2)], **o),
    "DeepNADE": lambda i, **o: models.DeepNADE(i(4), i(5), **o),
    "DeepNADE-list": lambda i, **o: models.DeepNADE(np.array([2, 2], i), [i(5), i(6)], **o),
    "DeepNADE-array": lambda i, **o: models.DeepNADE(i(4), np.array([5, 6], i), **o),
    "OffsetNADE": lambda i, **o: models.OffsetNADE(i(4), i(5), window=i(2), **o),
    "OffsetNADE-list": lambda i, **o: models.OffsetNADE(i(4), [i(5), i(6)], window=i(2), **o),
    "OffsetNADE-2d": lambda i, **o: models.OffsetNADE(
        (i(2), i(2)), i(5), window=(i(1), i(2)), **o
    ),
    "MADE": lambda i, **o: models.MADE(i(4), i(5), **o),
    "MADE-list": lambda i, **o: models.MADE(i(4), [i(5), i(6)], degree_seed=i(3), **o),
    "MADE-degrees": lambda i, **o: models.MADE(i(4), np.array([3], i), degrees=[np.array([0, 1, 2], i)], **o),
    "MADE-masks": lambda i, **o: models.MADE(
        i(4), [i(5)], degrees="random", n_masks=i(3), n_orders=i(2), **o
    ).use_mask(i(1)),
}  # fmt: skip


@pytest.mark.parametrize("integer", KINDS)
@pytest.mark.parametrize("kind", MODELS)
def test_models(tmp_path, kind, integer):
    i = integer
    head = heads.GaussianMixture(2) if kind == "RNADE" else heads.Categorical(3)
    model = MODELS[kind](i, order=np.array([2, 0, 3, 1], i), context_features=i(2), head=head)
    plain = MODELS[kind](int, order=[2, 0, 3, 1], context_features=2, head=head)
    plain.load_state_dict(model.state_dict())
    assert json.dumps(model.config()) == json.dumps(plain.config())
    context = torch.ones(3, 2)
    for shape in (i(2), (i(2), i(1)), np.array([2, 1], i)):
        want = plain.sample([int(size) for size in np.atleast_1d(shape)], context, seed=7, first_index=2)
        assert torch.equal(model.sample(shape, context, seed=i(7), first_index=i(2)), want)
    sampling = model.sampling(i(2), context, seed=i(7))
    sampling.advance(i(3))
    assert sampling.position == 3
    assert model.begin((i(3),), context).position == 0
    model.save(tmp_path)
    for one in (model, models.load(tmp_path)):
        assert torch.equal(one.log_prob(want, context), plain.log_prob(want, context))


@pytest.mark.parametrize("integer", KINDS)
@pytest.mark.parametrize("head", HEADS)
def test_heads(head, integer):
    own, plain = HEADS[head](integer), HEADS[head](int)
    assert repr(own) == repr(plain) and json.dumps(own.config()) == json.dumps(plain.config())
    assert own.counts(4) == plain.counts(4)
    model = models.NADE(4, 5, head=own)
    assert model.log_prob(model.sample(integer(3), seed=integer(0))).shape == (3,)


@pytest.mark.parametrize("integer", KINDS)
def test_orderings_masks_and_layers(integer):
    i = integer
    for make in (orderings.raster, orderings.reversed, orderings.snake):
        for shape in (i(6), (i(2), i(3)), np.array([1, 2, 3], i)):
            assert torch.equal(make(shape), make([int(size) for size in np.atleast_1d(shape)]))
    assert torch.equal(orderings.random(i(6), seed=i(3)), orderings.random(6, seed=3))
    assert torch.equal(orderings.check(np.array([2, 0, 1], i), i(3)), torch.tensor([2, 0, 1]))
    assert torch.equal(orderings.inverse(np.array([2, 0, 1], i)), torch.tensor([1, 2, 0]))
    mask = Mask.from_degrees(np.array([1, 2, 3], i), [i(1), i(2)])
    assert mask.fingerprint() == Mask.from_degrees([1, 2, 3], [1, 2]).fingerprint()
    assert Mask.dense(i(2), i(3)).fingerprint() == Mask.dense(2, 3).fingerprint()
    layer = nn.MaskedLinear(i(3), i(2), mask)
    assert layer(torch.ones(4, 3)).shape == (4, 2)
    torch.nn.Linear(3, 2).load_state_dict(layer.state_dict())
    autoencoder = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 4))
    made = models.MADE.from_autoencoder(
        autoencoder, i(4), degrees=[np.arange(6, dtype=i) % 4], n_masks=i(2), n_orders=i(2), degree_seed=i(1)
    )
    assert made.log_prob(torch.zeros(2, 4)).shape == (2,)
    assert ar_fast.check_autoregressive(made, i(4), order=np.arange(4, dtype=i))


@pytest.mark.parametrize("integer", KINDS)
def test_functional(integer):
    """Integers of the ops that draw and of heads with levels, in the compiled ops and in a reference."""
    i = integer
    zeros, d = torch.zeros(2, 3), 3
    nade = torch.ones(d, 3), torch.ones(d, 3), torch.zeros(d)
    drawn = {"seed": i(4), "first_index": i(2), "start": i(1), "stop": i(3)}
    plain = {name: int(value) for name, value in drawn.items()}
    calls = [
        lambda i, **o: functional.nade_sample(zeros, *nade, variables=i(d), **o),
        lambda i, **o: functional.masked_mlp_sample(
            zeros, [torch.ones(d, d)], [zeros[0]], [], [], variables=i(d), by_input=True, **o
        ),
        lambda i, **o: functional.nade_sample(
            zeros, torch.ones(d, 3), torch.ones(3 * d, 3), torch.ones(3 * d), head="logistic_mixture", levels=i(5), **o
        ),
    ]
    for call in calls:
        for got, want in zip(call(i, **drawn), call(int, **plain), strict=True):
            assert torch.equal(got, want)
    x, parameters = torch.ones(2, 3), torch.ones(2, 9)
    want = functional.head_log_prob(parameters, x, head="logistic_mixture", levels=5)
    assert torch.equal(functional.head_log_prob(parameters, x, head="logistic_mixture", levels=i(5)), want)
    got = torch.func.vmap(
        lambda p: functional.head_log_prob(p, x, head="logistic_mixture", levels=i(5))
    )(parameters[None])  # fmt: skip
    torch.testing.assert_close(got[0], want)


def test_training_and_comparing():
    i = np.int64
    settings = training.Settings(epochs=i(1), batch_size=i(8), shift=i(1), patience=i(2), seed=i(3))
    assert settings == training.Settings(epochs=1, batch_size=8, shift=1, patience=2, seed=3)
    assert {type(settings.seed), type(settings.epochs)} == {int}
    data = training.Split(*torch.randint(0, 2, (30, 4, 4)).split(10))
    tables = [
        ar_fast.compare([models.NADE((4, 4), 3)], data, own, seed=seed, progress=False)
        for own, seed in ((settings, i(2)), (training.Settings(epochs=1), 2))
    ]
    assert [len(table) for table in tables] == [1, 1]
