"""examples/autoencoders.py: what it says of autoencoders and VAEs is mathematics, and it runs as it stands."""

import math
import runpy
from pathlib import Path

import pytest
import torch
from grids import skip_module_without

import ar_fast
from ar_fast.models import MADE

skip_module_without("demo", "sklearn", "matplotlib")

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "autoencoders.py"))
# Bounds are judged by their draws.
FIXED_SEED = 0


def every_event(variables):
    return torch.tensor([[number >> i & 1 for i in range(variables)] for number in range(2**variables)]).float()


def test_masking_the_same_parameters_makes_an_autoencoder_autoregressive():
    autoencoder = SCRIPT["make_autoencoder"](8, 20)
    made = MADE.from_autoencoder(autoencoder, 8)
    seen = ar_fast.check_autoregressive(autoencoder, 8)
    # Output i sees every input j >= i too.
    assert len(seen.violations) == 8 * 9 // 2
    assert ar_fast.check_autoregressive(made, 8)
    assert torch.equal(made.layers[0].bias.sort().values, autoencoder[0].bias.sort().values)
    # Columns and outputs are by position, which is the raster order here; units are sorted by degree.
    weight = dict(made.named_parameters())["layers.0.weight"]
    assert torch.equal(weight.sort(0).values, autoencoder[0].weight.sort(0).values)
    x = every_event(8)
    assert made.log_prob(x).double().exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_a_reconstruction_is_no_log_likelihood():
    x = every_event(6)
    autoencoder = SCRIPT["make_autoencoder"](6, 40)
    SCRIPT["fit"](autoencoder, lambda batch: SCRIPT["reconstruction"](autoencoder, batch), x, 400, 0.02)
    loss = SCRIPT["reconstruction"](autoencoder, x)
    # The entropy of six fair coins is 6 log 2: a model of them cannot cost less on average.
    assert loss.mean().item() < 0.1 * 6 * math.log(2)
    assert (-loss).double().exp().sum().item() > 32
    drawn = SCRIPT["pixel_by_pixel"](autoencoder, 3, 6)
    assert drawn.shape == (3, 6) and set(drawn.flatten().tolist()) <= {0.0, 1.0}


def trained_vae():
    torch.manual_seed(1)
    vae = SCRIPT["VAE"](variables=6, hidden=20, codes=2)
    x = torch.randint(0, 2, (400, 3)).float().repeat_interleave(2, 1)
    SCRIPT["fit"](vae, lambda batch: vae.elbo(batch)[1] - vae.elbo(batch)[0], x, 30, 0.01)
    return vae


def test_the_bounds_of_a_vae_rise_to_the_integral():
    vae = trained_vae()
    x = every_event(6)
    exact = vae.log_prob(x)
    assert exact.double().exp().sum().item() == pytest.approx(1, abs=1e-4)
    with torch.no_grad():
        elbo = torch.stack([likelihood - divergence for likelihood, divergence in (vae.elbo(x) for _ in range(2000))])
    bounds = [elbo.mean(0)] + [
        torch.stack([vae.importance_bound(x, draws) for _ in range(2000 // draws)]).mean(0) for draws in (10, 200)
    ]
    means = [bound.mean().item() for bound in bounds]
    assert means[0] < means[1] < means[2] < exact.mean().item() + 0.005
    assert exact.mean().item() - means[2] < 0.1 * (exact.mean().item() - means[0])


def test_the_integral_is_for_two_codes():
    with pytest.raises(ValueError, match="codes must be 2, got 16"):
        SCRIPT["VAE"]().log_prob(torch.zeros(1, 64))


@pytest.mark.full
def test_the_script(tmp_path, capsys):
    found = SCRIPT["main"](epochs=20, out=str(tmp_path), draws=50)
    assert found["reconstruction"] < 8 and found["masked"] < found["made"]
    assert found["elbo"] < found["bound"] < found["exact"] + 0.05
    assert found["made"] > found["exact"]
    assert "2,080 pairs" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["autoencoders-masks.png", "autoencoders-samples.png"]
