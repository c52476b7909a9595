"""A draw that is written down and goes on elsewhere, bit for bit, for every model; and what it keeps in memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_cases import CASES, KINDS, make_context, make_model
from safetensors.torch import load, save

from ar_fast import heads, models

FIXED_SEED = 0
pytestmark = pytest.mark.heavy


def elsewhere(state):
    """The state as a file holds it."""
    return load(save({name: tensor.cpu().contiguous() for name, tensor in state.items()}))


@torch.no_grad()
@pytest.mark.parametrize("kind, context_features", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_goes_on_in_another_process(kind, context_features, dtype, device):
    def begun():
        # Nothing is shared with the draw before.
        model = make_model(kind, 17, context_features, device=device, dtype=dtype)
        context = make_context(context_features, 2, device=device, dtype=dtype)
        return model.sampling(3, context, seed=5, first_index=4, temperature=0.8)

    whole = begun()
    whole.advance()
    sampling = begun()
    for count in (0, 4, 1, 5):
        sampling.advance(count)
        state = elsewhere(sampling.state_dict())
        # It goes on, and the state stays what it was.
        sampling.advance(2)
        sampling = begun()
        sampling.load_state_dict(state)
    assert sampling.position == 10
    sampling.advance()
    assert torch.equal(sampling.samples, whole.samples)
    torch.testing.assert_close(sampling.log_prob, whole.log_prob)
    finished = begun()
    finished.load_state_dict(elsewhere(sampling.state_dict()))
    assert finished.done and torch.equal(finished.samples, whole.samples)


@torch.no_grad()
def test_a_state_in_memory_is_not_changed_by_a_later_draw(device):
    model = make_model("OffsetNADE", (4, 5), device=device)
    first, second = model.sampling(2, seed=1), model.sampling(2, seed=1)
    first.advance(7)
    second.load_state_dict(first.state_dict())
    first.advance()
    assert second.position == 7 and not second.values.flatten(1)[:, (~second.drawn).flatten()].any()
    second.advance()
    assert torch.equal(first.samples, second.samples)


@torch.no_grad()
def test_it_goes_on_with_what_was_given(device):
    given = torch.arange(12, device=device).reshape(3, 4) % 2
    known = torch.arange(12, device=device).reshape(3, 4) < 5
    model = make_model("NADE", (3, 4), order=None, device=device)
    options = {"seed": 2, "given": given, "known": known}
    first, second = model.sampling(3, **options), model.sampling(3, **options)
    first.advance(8)
    second.load_state_dict(elsewhere(first.state_dict()))
    second.advance()
    assert torch.equal(second.samples, model.sample(3, **options))
    with pytest.raises(ValueError, match=r"these weights, of these arguments"):
        model.sampling(3, seed=2, given=1 - given, known=known).load_state_dict(first.state_dict())


KEPT = {
    "bits": (heads.Bernoulli(), torch.uint8),
    "8 bits": (heads.LogisticMixture(2, 256), torch.uint8),
    "10 bits": (heads.LogisticMixture(2, 1024), torch.int16),
    "17 bits": (heads.LogisticMixture(2, 2**17), torch.int32),
    "categories": (heads.Categorical(5), torch.uint8),
    "reals": (heads.GaussianMixture(2), torch.float32),
    "categories of two sizes": (heads.Categorical([3, 400] * 6), torch.int16),
    "mixed": (heads.PerVariable([heads.Categorical(3), heads.LogisticMixture(1, 9)] * 6), torch.float32),
}


@torch.no_grad()
@pytest.mark.parametrize("order", ["raster", "random"])
@pytest.mark.parametrize("name", KEPT)
def test_values_are_kept_in_the_smallest_dtype(name, order, device):
    head, dtype = KEPT[name]
    model = make_model("NADE", (2, 2, 3), head=head, device=device, dtype=torch.float32,
                       **({} if order == "random" else {"order": None}))  # fmt: skip
    whole, sampling = model.sample(4, seed=3), model.sampling(4, seed=3)
    assert not sampling.values.any() and not sampling.samples.any() and not sampling.drawn.any()
    for position in (5, 10, 12):
        sampling.advance(5)
        values, drawn = sampling.values, sampling.drawn
        assert values.dtype == dtype and values.shape == (4, 2, 2, 3)
        assert torch.equal(values.to(whole.dtype), torch.where(drawn, whole, 0))
        assert torch.equal(sampling.samples, torch.where(drawn, whole, 0)) and sampling.samples.dtype == whole.dtype
        order = torch.arange(12) if model.order is None else model.order.cpu()
        assert drawn.flatten().nonzero()[:, 0].tolist() == sorted(order[:position].tolist())
    if dtype != torch.float32:
        assert values.data_ptr() == sampling.values.data_ptr()
    at_once = model.sampling(4, seed=3)
    at_once.advance()
    assert at_once.values.dtype == dtype and torch.equal(at_once.samples, whole)
    assert torch.equal(at_once.values, sampling.values)


def test_a_state_of_another_draw_is_refused():
    model = models.OffsetNADE((3, 4), 5, 1, head=heads.LogisticMixture(2, 256))
    sampling = model.sampling(2, seed=1)
    sampling.advance(5)
    state = elsewhere(sampling.state_dict())
    other = models.OffsetNADE((3, 4), 5, 1, head=heads.LogisticMixture(2, 256))

    def refuses(sampling, message, state=state):
        sampling.advance(2)
        before = sampling.position, sampling.samples
        with pytest.raises(ValueError, match=message):
            sampling.load_state_dict(state)
        assert sampling.position == before[0] and torch.equal(sampling.samples, before[1])

    refuses(model.sampling(2, seed=2), "Sampling: seed must be 2, got a state with 1")
    refuses(model.sampling(2, seed=1, first_index=3), "Sampling: first_index must be 3, got a state with 0")
    refuses(model.sampling(2, seed=1, temperature=0.5), "Sampling: temperature must be 0.5, got a state with 1.0")
    refuses(model.sampling(3, seed=1), r"Sampling: values must be torch.uint8 of shape \(3, 12\), got .* \(2, 12\)")
    refuses(other.sampling(2, seed=1), "Sampling: state must be of a model with these weights")
    refuses(model.resized((4, 3)).sampling(2, seed=1), r"Sampling: state.0 must be torch.float32 of shape \(2, 4\)")
    refuses(model.sampling(2, seed=1), "Sampling: state must have the tensors .*'values'.*, got .*'x'", {"x": state})
    wrong = state | {"position": torch.tensor(13)}
    refuses(model.sampling(2, seed=1), r"Sampling: position must be in 0 \.\.\. 12, got 13", wrong)


_GROWTH = """
import sys
from pathlib import Path
import torch
from ar_fast import heads, models
torch.set_num_threads(1)
make = lambda size: models.OffsetNADE((8, 8), 4, 1, head=eval(sys.argv[1])).resized((size, size))
def draw(size):
    sampling = make(size).sampling(seed=0)
    while not sampling.done:
        sampling.advance(4096)
    return sampling
def in_use(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
draw(512)
# From here on the peak is counted anew.
Path("/proc/self/clear_refs").write_text("5")
before = in_use("VmRSS")
kept = draw(2048)
print((in_use("VmHWM") - before) / kept.values.numel())
"""


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")
@pytest.mark.parametrize("head", ["heads.Bernoulli()", "heads.LogisticMixture(1)"])
def test_memory_grows_by_one_byte_for_a_variable(head):
    done = subprocess.run([sys.executable, "-c", _GROWTH, head], capture_output=True, text=True, check=True)
    grown = float(done.stdout)
    # The values themselves; the rest, some megabytes, does not grow with the image.
    assert 0.7 < grown < 1.5, grown


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_does_not_depend_on_the_position(kind):
    """Its shapes are those of the beginning, which is what a later process compares it with."""
    sampling = make_model(kind, 6).sampling(2, seed=0)
    shapes = [{name: (tensor.shape, tensor.dtype) for name, tensor in sampling.state_dict().items()}]
    while not sampling.done:
        sampling.advance(1)
        shapes.append({name: (tensor.shape, tensor.dtype) for name, tensor in sampling.state_dict().items()})
    assert all(each == shapes[0] for each in shapes)
