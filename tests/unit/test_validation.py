"""Bad input to the models: each error names the argument, the rule and what was given."""

import numpy as np
import pytest
import torch
from model_cases import FIXED_ORDER_KINDS, KINDS, make_context, make_model, random_binary

from ar_fast import check_autoregressive, heads, models, orderings

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize(
    "make", [lambda **options: models.NADE(6, 4, **options), lambda **options: models.MADE(6, [4], **options)]
)
@pytest.mark.parametrize(
    "options, message",
    [
        ({"activation": "softmax"}, r"activation must be one of .*, got 'softmax'"),
        ({"order": [0, 1, 2, 3, 4, 4]}, r"order: must be a permutation of 0 \.\.\. 5, got 4 2 times"),
        ({"order": [0, 1]}, r"order: must be a permutation of 0 \.\.\. 5, got 2 entries"),
        ({"context_features": -1}, r"context_features must be an integer >= 0, got -1"),
        ({"head": "Bernoulli"}, r"head must be heads\.\w+, got 'Bernoulli'"),
    ],
)
def test_bad_options(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: models.NADE(0, 4), r"NADE: event_shape must be one or more positive integers, got 0"),
        (lambda: models.NADE((), 4), r"NADE: event_shape must be one or more positive integers, got \(\)"),
        (lambda: models.NADE((2, 1.5), 4), r"got \(2, 1.5\)"),
        (lambda: models.NADE(6, 0), r"NADE: hidden_features must be a positive integer, got 0"),
        (lambda: models.MADE(6, []), r"MADE: hidden_features must be 1 to 16 positive integers, got \[\]"),
        (lambda: models.MADE(6, [4] * 17), r"MADE: hidden_features must be 1 to 16 positive integers"),
        (lambda: models.MADE(6, [4, 0]), r"got \[4, 0\]"),
        (lambda: models.MADE(6, [2], degrees=[[1, 6]]), r"MADE: degrees must be integers in 0 \.\.\. 5, got \[1, 6\]"),
        (
            lambda: models.MADE(6, [2], degrees=[[1]]),
            r"MADE: degrees must have one entry per unit of \[2\], got shapes",
        ),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(3), r"x must have shape \(\*batch, 2, 3\), got \(3,\)"),
        (torch.zeros(4, 6), r"x must have shape \(\*batch, 2, 3\), got \(4, 6\)"),
        (torch.zeros(3, 2), r"x must have shape \(\*batch, 2, 3\), got \(3, 2\)"),
        (
            torch.zeros(2, 3, dtype=torch.float64),
            r"x must be bool, integer or of the model's dtype, torch.float32, got torch.float64",
        ),
        (torch.zeros(2, 3, dtype=torch.bfloat16), r"x must be bool, integer .* got torch.bfloat16"),
        (torch.zeros(2, 3, dtype=torch.complex64), r"x must be bool, integer .* got torch.complex64"),
        (torch.zeros(2, 3, device="meta"), r"x must be on the model's device, cpu, got meta"),
        (torch.tensor([[0, 1, 2], [0, 0, 0]]), r"x must be in the support of Bernoulli\(\), .*got 2 at index \(0, 2\)"),
        (torch.tensor([[0, 1, 0], [0, 0.5, 0]]), r"x must be in the support .*got 0.5 at index \(1, 1\)"),
        (torch.tensor([[0, 1, 0], [0, 0, torch.nan]]), r"x must be in the support .*got nan at index \(1, 2\)"),
        (torch.full((2, 3), -torch.inf), r"x must be in the support .*got -inf at index \(0, 0\)"),
    ],
)
def test_bad_x(kind, x, message):
    model = make_model(kind, (2, 3), dtype=torch.float32)
    for method in (model.log_prob, model):
        with pytest.raises(ValueError, match=f"{type(model).__name__}: {message}"):
            method(x)


@pytest.mark.parametrize("kind", KINDS)
def test_x_must_be_a_tensor(kind):
    with pytest.raises(TypeError, match="x must be a tensor, got list"):
        make_model(kind, 2).log_prob([0, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_validate_args(kind, device):
    x = random_binary(2, 5, device=device, dtype=torch.float32)
    x[1, 2] = torch.nan
    options = {"device": device, "dtype": torch.float32}
    with pytest.raises(ValueError, match=r"got nan at index \(1, 2\)"):
        make_model(kind, 5, validate_args=True, **options).log_prob(x)
    log_prob = make_model(kind, 5, validate_args=False, **options).log_prob(x)
    assert log_prob.isnan().tolist() == [False, True], "NaN propagates, to its own row only"
    if device.type == "cuda":
        assert make_model(kind, 5, **options).log_prob(x).isnan().tolist() == [False, True]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "context, message",
    [
        (None, r"context must have shape \(\*batch, 3\) in a model with 3 context_features, got None"),
        (torch.zeros(4, 2), r"context must have shape \(\*batch, 3\) .*got \(4, 2\)"),
        (
            torch.zeros(5, 3),
            r"context must have shape .*with context_batch the last dimensions of the batch \(4,\), got \(5, 3\)",
        ),
        (torch.zeros(4, 3, dtype=torch.int64), r"context must be of the model's dtype, torch.float32, got torch.int64"),
        (torch.zeros(4, 3, dtype=torch.float64), r"context must be .*, torch.float32, got torch.float64"),
    ],
)
def test_bad_context(kind, context, message):
    model = make_model(kind, 5, 3, dtype=torch.float32)
    with pytest.raises(ValueError, match=f"{type(model).__name__}: {message}"):
        model.log_prob(torch.zeros(4, 5), context)
    if context is None or context.shape != (5, 3):
        with pytest.raises(ValueError, match=type(model).__name__):
            model.sample(4, context, seed=1)


@pytest.mark.parametrize("kind", KINDS)
def test_context_in_a_model_without(kind):
    model, context = make_model(kind, 5), torch.zeros(4, 3, dtype=torch.float64)
    calls = (
        lambda: model.log_prob(random_binary(4, 5), context),
        lambda: model.sample(4, context),
        lambda: model.begin(4, context),
        lambda: model.distribution(context),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"context must be None in a model without .*got one of shape \(4, 3\)"):
            call()


def known(*positions, variables=5):
    mask = torch.zeros(variables, dtype=torch.bool)
    mask[list(positions)] = True
    return mask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options, message",
    [
        ({"n": -1}, r"n must be an integer >= 0 or a shape of those, got -1"),
        ({"n": 1.5}, r"n must be an integer >= 0 or a shape of those, got 1.5"),
        ({"seed": -1}, r"seed must be an integer in 0 \.\.\. 2\^63 - 1, got -1"),
        ({"seed": 2**63}, r"seed must be an integer in 0"),
        ({"seed": 1, "generator": torch.Generator()}, r"seed and generator must not both be given, got seed 1"),
        ({"first_index": -1}, r"first_index must be an integer >= 0, got -1"),
        ({"temperature": 0}, r"temperature must be positive and finite, got 0"),
        ({"temperature": float("nan")}, r"temperature must be positive and finite, got nan"),
        ({"temperature": float("inf")}, r"temperature must be positive and finite, got inf"),
        ({"given": torch.zeros(5)}, r"given and known must come together, got no known"),
        ({"known": known(0)}, r"given and known must come together, got no given"),
        ({"given": torch.zeros(5), "known": torch.zeros(5)}, r"known must be bool, got torch.float32"),
        (
            {"given": torch.zeros(4), "known": known(0, variables=4)},
            r"given must have the event's shape \(5,\), preceded by none or some of .* \(3,\), got \(4,\)",
        ),
        ({"given": torch.zeros(2, 5), "known": known(0)}, r"given must have the event's shape .*got \(2, 5\)"),
        ({"given": torch.full((5,), 2), "known": known(0)}, r"given must be in the support .*got 2 at index \(0, 0\)"),
        ({"given": torch.full((5,), torch.nan), "known": known(0)}, r"given must be in the support .*got nan"),
    ],
)
def test_bad_sampling_arguments(kind, options, message):
    model = make_model(kind, 5, order=None, dtype=torch.float32)
    with pytest.raises(ValueError, match=f"{type(model).__name__}: {message}"):
        model.sample(**{"n": 3} | options)


@pytest.mark.parametrize("kind", FIXED_ORDER_KINDS)
@pytest.mark.parametrize(
    "positions, message",
    [
        ((0, 3), "known must be a prefix of the model's order, got position 3 known and position 2 unknown .*DeepNADE"),
        ((1,), "known must be a prefix .*got position 1 known and position 0 unknown"),
    ],
)
def test_known_variables_that_are_no_prefix(kind, positions, message):
    model = make_model(kind, 5, order=None, dtype=torch.float32)
    with pytest.raises(ValueError, match=f"{type(model).__name__}: {message}"):
        model.sample(3, given=torch.zeros(5), known=known(*positions))


@pytest.mark.parametrize("kind, context_features", [(kind, c) for kind in FIXED_ORDER_KINDS for c in (0, 3)])
def test_a_prefix_is_one_of_the_order_and_not_of_the_indices(kind, context_features):
    model = make_model(kind, 5, context_features)
    context = make_context(context_features)
    given = torch.zeros(5)
    with pytest.raises(ValueError, match="known must be a prefix"):
        model.sample(2, context, given=given.double(), known=known(int(model.order[1])))
    model.sample(2, context, given=given.double(), known=known(int(model.order[0]), int(model.order[1])))


@pytest.mark.parametrize("kind", KINDS)
def test_bad_steps(kind):
    model = make_model(kind, 3)
    state = model.begin(4)
    with pytest.raises(ValueError, match=r"value must have shape \(4,\), got \(3,\)"):
        model.next(state, torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"value must be in the support .*got 2.0"):
        model.next(state, torch.full((4,), 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"mean must have shape \(3,\), got \(4,\)"):
        model.initialize_from_mean(torch.zeros(4))


def test_begin_takes_its_batch_from_the_context_or_equal_to_it():
    model = make_model("NADE", 3, 2)
    context = torch.zeros(4, 2, dtype=torch.float64)
    assert model.begin(context=context).parameters.shape == (4, 1)
    with pytest.raises(ValueError, match=r"context must have shape \(\*batch, C\) with batch \(5,\), got \(4, 2\)"):
        model.begin(5, context)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_contexts_that_are_not_finite(kind, bad, device):
    model = make_model(kind, 4, 3, head=heads.LogisticMixture(1, 8), device=device, validate_args=True)
    context = make_context(3, 2, device=device)
    context[1, 2] = bad
    x = torch.zeros(2, 4, dtype=torch.long, device=device)
    for call in (
        lambda: model.log_prob(x, context),
        lambda: model(x, context),
        lambda: model.sample(1, context),
        lambda: model.sampling(1, context),
        lambda: model.begin(context=context),
        lambda: model.distribution(context),
    ):
        with pytest.raises(ValueError, match=rf"context must be finite, got {bad} at index \(1, 2\)"):
            call()
    model.validate_args = False
    assert model.log_prob(x, context).isnan().tolist() == [False, True] or bad == torch.inf


INT = np.int64
NUMPY = {
    "NADE": lambda: models.NADE(INT(4), INT(3), context_features=INT(2)),
    "RNADE": lambda: models.RNADE((INT(2), INT(2)), INT(3), INT(2)),
    "MADE": lambda: models.MADE(
        np.array([2, 2]), np.array([3, 5]), degrees="random", degree_seed=INT(1), n_masks=INT(3), n_orders=INT(2)
    ).use_mask(INT(1)),
    "MADE, one layer": lambda: models.MADE(4, INT(3), order=np.array([2, 0, 1, 3])),
    "ARMLP": lambda: models.ARMLP(INT(4), INT(3), head=heads.Categorical(INT(3))),
    "FVSBN": lambda: models.FVSBN((INT(4),), head=heads.Categorical(np.array([2, 3, 2, 2]))),
    "DeepNADE": lambda: models.DeepNADE(INT(4), INT(3), head=heads.LogisticMixture(INT(1), INT(4))),
    "DeepNADE, two layers": lambda: models.DeepNADE(4, np.array([3, 2]), head=heads.GaussianMixture(INT(2))),
    "OffsetNADE": lambda: models.OffsetNADE((INT(2), INT(2)), INT(3), INT(1)),
    "RNN": lambda: models.RNN((INT(2), INT(2)), INT(3), "lstm", INT(2), context_features=INT(2)),
    "OffsetNADE, (up, side)": lambda: models.OffsetNADE((2, 2), 3, np.array([1, 1])),
}


@pytest.mark.parametrize("name", NUMPY)
def test_numpy_integers_are_integers(name, tmp_path):
    model = NUMPY[name]()
    context = torch.zeros(2) if model.context_features else None
    samples = model.sample((INT(2), INT(1)), context, seed=INT(1), first_index=INT(3), temperature=np.float64(1.0))
    assert torch.equal(samples, model.sample((2, 1), context, seed=1, first_index=3))
    assert torch.equal(model.sample(INT(2), context, seed=1, first_index=3), samples[:, 0])
    sampling = model.sampling(np.int32(2), context, seed=1, first_index=3)
    sampling.advance(INT(1))
    sampling.advance()
    assert torch.equal(sampling.samples, samples[:, 0])
    assert model.begin(INT(2), None if context is None else context.expand(2, 2)).parameters.shape[0] == 2
    model.save(tmp_path)
    assert torch.equal(models.load(tmp_path).log_prob(samples, context), model.log_prob(samples, context))
    assert check_autoregressive(model, np.array(model.event_shape), context=context)
    assert torch.equal(orderings.raster(INT(3)), torch.arange(3))


@pytest.mark.parametrize("bad", [np.float64(3.0), np.array([2.0, 3.0]), np.array(1.5), torch.tensor(3), "3", None, 2.0])
def test_what_is_no_integer_is_refused(bad):
    with pytest.raises(ValueError, match="event_shape must be one or more positive integers, got"):
        models.NADE(bad, 3)
    kinds = models.NADE, models.MADE, models.ARMLP, models.DeepNADE, models.RNN
    for make in (*kinds, lambda *sizes: models.OffsetNADE(*sizes, 1)):
        with pytest.raises(ValueError, match=r"hidden_features must be .* positive integer"):
            make(4, bad)
    with pytest.raises(ValueError, match="window must be a positive integer"):
        models.OffsetNADE(4, 3, bad)
    with pytest.raises(ValueError, match="categories must be a positive integer or some of them"):
        heads.Categorical(bad)
    with pytest.raises(ValueError, match="n must be an integer >= 0 or a shape"):
        models.NADE(4, 3).sample(bad)


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_of_samples_do_not_run_over(kind):
    """They are counters of the random numbers, in 63 bits."""
    model = make_model(kind, 4, 2)
    context = make_context(2, 3)
    last = 2**63 // 3 - 3
    assert model.sample(2, context, seed=1, first_index=last).shape == (2, 3, 4)
    for n, first in ((2, 2**63 // 3), (4, 2**63 // 3 - 2), (1, 2**63)):
        with pytest.raises(ValueError, match=r"first_index must leave the numbers of all rows below 2\^63"):
            model.sample(n, context, seed=1, first_index=first)
