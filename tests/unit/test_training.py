"""ar_fast.training on events of any shape, with its default settings."""

import pytest
import torch

from ar_fast import heads, models
from ar_fast.training import Settings, Split, shift, train


def split(*event_shape):
    events = torch.rand(60, *event_shape, generator=torch.Generator().manual_seed(0)).lt(0.5).float()
    return Split(events[:40], events[40:50], events[50:])


@pytest.mark.parametrize("event_shape", [(5,), (3, 4), (2, 3, 4)], ids=str)
def test_default_settings_train_events_of_any_shape(event_shape):
    torch.manual_seed(0)
    model = models.NADE(event_shape, 4)
    result = train(model, split(*event_shape), Settings(epochs=2), progress=False)
    assert len(result.history) == 2


def test_reals_train_with_default_settings():
    torch.manual_seed(0)
    x = torch.randn(60, 3)
    model = models.NADE(3, 4, head=heads.GaussianMixture(2))
    result = train(model, Split(x[:40], x[40:50], x[50:]), Settings(epochs=1), progress=False)
    assert len(result.history) == 1


def test_channels_of_an_image_move_together():
    image = torch.zeros(50, 2, 4, 5)
    image[:, 0, 2, 2] = 1
    image[:, 1, 1, 3] = 2
    moved = shift(image, 1, torch.Generator().manual_seed(0))
    assert moved.shape == image.shape
    first, second = moved[:, 0].nonzero()[:, 1:], moved[:, 1].nonzero()[:, 1:]
    assert torch.equal(second - first, torch.tensor([[-1, 1]]).expand(50, 2)) and len(first.unique(dim=0)) == 9


@pytest.mark.parametrize("event_shape", [(5,), (2, 3, 4, 5)], ids=str)
def test_what_is_no_image_cannot_be_shifted(event_shape):
    with pytest.raises(ValueError, match=r"images must have shape \(N, height, width\) .* got \(40, .* shift = 1"):
        train(models.NADE(event_shape, 4), split(*event_shape), Settings(epochs=1, shift=1), progress=False)


def test_training_within_autocast_uses_the_weights_of_every_step():
    """Within one context torch keeps its 16-bit copies of the weights, which an optimiser does not change."""
    found = []
    for within in (True, False):
        torch.manual_seed(0)
        model = models.MADE(5, [8])
        if within:
            with torch.autocast("cpu", torch.bfloat16):
                result = train(model, split(5), Settings(epochs=4, batch_size=10), progress=False)
                assert torch.is_autocast_cache_enabled()
        else:
            of_model = model.log_prob

            def log_prob(*arguments, of_model=of_model, **options):
                with torch.autocast("cpu", torch.bfloat16):
                    return of_model(*arguments, **options)

            model.log_prob = log_prob
            result = train(model, split(5), Settings(epochs=4, batch_size=10), progress=False)
        found.append(([entry["validation"] for entry in result.history], [*model.parameters()]))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
