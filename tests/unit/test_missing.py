"""log_prob with missing variables: the marginal of what is observed, or a refusal that says what would work."""

import pytest
import torch
from model_cases import CASES, FIXED_ORDER_KINDS, KINDS, all_binary, make_context, make_model, random_binary

from ar_fast import heads, models

pytestmark = pytest.mark.heavy


def prefix_mask(model, length):
    mask = torch.zeros(model.variables, dtype=torch.bool, device=model.device)
    mask[range(length) if model.order is None else model.order[:length]] = True
    return mask


@pytest.mark.parametrize("kind, context_features", CASES)
def test_the_marginal_is_the_sum_over_what_is_missing(kind, context_features, device):
    model = make_model(kind, 6, context_features, device=device)
    context = make_context(context_features, device=device)
    events = all_binary(6, device)
    probability = model.log_prob(events, context).exp()
    for length in range(7):
        observed = prefix_mask(model, length)
        x = random_binary(6, device=device)
        agrees = (events[:, observed] == x[observed]).all(1)
        holes = torch.where(observed, x, float("nan"))
        marginal = model.log_prob(holes, context, observed=observed)
        torch.testing.assert_close(marginal.exp(), probability[agrees].sum(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind, context_features", CASES)
def test_each_event_may_miss_others(kind, context_features, device):
    model = make_model(kind, (2, 3), context_features, device=device)
    context = make_context(context_features, 5, device=device)
    x = random_binary(4, 5, 2, 3, device=device)
    observed = torch.stack([prefix_mask(model, length).reshape(2, 3) for length in (0, 2, 6, 3, 5)])
    terms = model.log_prob(x, context, per_variable=True)
    got = model.log_prob(x, context, observed=observed, per_variable=True)
    assert got.shape == x.shape and bool((got[:, ~observed] == 0).all())
    torch.testing.assert_close(got, torch.where(observed, terms, 0.0))
    total = model.log_prob(x, context, observed=observed)
    assert total.shape == (4, 5)
    torch.testing.assert_close(total, got.sum((-2, -1)))
    assert bool((total[:, 0] == 0).all())
    torch.testing.assert_close(total[:, 2], model.log_prob(x, context)[:, 2])


@pytest.mark.parametrize("kind", KINDS)
def test_missing_values_have_no_gradient_and_spoil_none(kind, device):
    model = make_model(kind, 6, device=device)
    observed = prefix_mask(model, 3)
    x = torch.where(observed, random_binary(4, 6, device=device), float("nan")).requires_grad_()
    model.validate_args = False
    (gradient, *others) = torch.autograd.grad(
        model.log_prob(x, observed=observed).sum(), [x, *model.parameters()], allow_unused=True
    )
    assert all(bool(g.isfinite().all()) for g in (gradient, *others) if g is not None)
    assert bool((gradient[:, ~observed] == 0).all()) and bool((gradient[:, observed] != 0).any())


@pytest.mark.parametrize(
    "head, x",
    [
        (heads.Categorical([3, 2, 4]), [2, 1, -7]),
        (heads.GaussianMixture(2), [0.3, -1.0, float("inf")]),
        (heads.LogisticMixture(2, levels=8), [7, 0, 99]),
    ],
)
def test_every_head(head, x, device):
    model = models.NADE(3, 9, head=head, device=device)
    x = torch.tensor(x, device=device)
    observed = torch.tensor([True, True, False], device=device)
    full = torch.where(observed, x, 0)
    expected = model.log_prob(full, per_variable=True)[:2].sum()
    torch.testing.assert_close(model.log_prob(x, observed=observed), expected)


@pytest.mark.parametrize("kind", FIXED_ORDER_KINDS)
def test_what_is_refused(kind):
    model = make_model(kind, 5, order=None)
    x = random_binary(3, 5)
    hole = torch.tensor([True, False, True, True, True])
    message = (
        rf"{type(model).__name__}: observed must be a prefix of the model's order, got position 2 observed and "
        r"position 1 missing in event 0\. .* missing last in the order, or train a model with variables missing, Deep"
    )
    with pytest.raises(ValueError, match=message):
        model.log_prob(x, observed=hole)
    with pytest.raises(ValueError, match=rf"{type(model).__name__}: observed must be bool, got torch.float64"):
        model.log_prob(x, observed=x)
    for shape in ((4,), (2, 5), (1, 3, 5)):
        with pytest.raises(ValueError, match=r"observed must have the event's shape \(5,\), preceded by none or some"):
            model.log_prob(x, observed=torch.ones(shape, dtype=torch.bool))
    with pytest.raises(ValueError, match="x must be in the support of"):
        model.log_prob(x + 7, observed=torch.ones(5, dtype=torch.bool))
