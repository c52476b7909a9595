"""Columns of different kinds in one model, and real ones standardised by it."""

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
from conftest import available_isas, isa
from tabular_cases import DISCRETE, HEAD, KINDS, REAL, SCALE, SHIFT, grid, make, table
from torch.nn import functional as F

from ar_fast import heads, models

FIXED_SEED = 0
pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_integrates_to_one_in_the_units_of_the_data(kind):
    model = make(kind, dtype=torch.float64)
    with torch.no_grad():
        # Short tails, wide components: the rectangle rule is exact to far below the tolerance.
        for parameter in model.parameters():
            parameter.mul_(0.5)
        x, cell = grid(121, 15.0)
        total = sum(model.log_prob(part).exp().sum() for part in x) * cell
    torch.testing.assert_close(total.item(), 1.0, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_of_evaluating_agrees(kind, device):
    model = make(kind, device=device)
    x = table(7, device)
    log_prob, terms = model.log_prob(x), model.log_prob(x, per_variable=True)
    torch.testing.assert_close(terms.sum(1), log_prob)
    # The heads themselves, in standardised units, and the Jacobian.
    z = (x - SHIFT.to(device)) / SCALE.to(device)
    parameters = model(x)
    assert parameters.shape == (7, sum(HEAD.counts(5)))
    torch.testing.assert_close(HEAD.log_prob(parameters, z) - SCALE.log().to(device), terms)
    split = parameters.split(HEAD.counts(5), -1)
    mode, drawn = HEAD.mode(parameters), HEAD.sample(parameters)
    for i, own in enumerate(split):
        torch.testing.assert_close(HEAD.of(i).mode(own).to(mode.dtype), mode[:, i])
    assert mode.shape == drawn.shape == x.shape and not HEAD.violation(mode).any() and not HEAD.violation(drawn).any()
    state = model.begin(7)
    while state.variable is not None:
        i = state.variable
        torch.testing.assert_close(state.parameters, split[i])
        state = model.next(state, x[:, i].long() if i in DISCRETE else x[:, i])
    plain = make(kind, device=device, standardized=False)
    torch.testing.assert_close(plain.log_prob(z) - SCALE.log().sum().item(), log_prob)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_and_their_log_prob(kind, device):
    model = make(kind, device=device)
    samples, log_prob = model.sample(50, seed=3, return_log_prob=True)
    assert samples.dtype == torch.float64 and samples.shape == (50, 5)
    for column, size in DISCRETE.items():
        assert set(samples[:, column].tolist()) <= set(range(size))
    torch.testing.assert_close(model.log_prob(samples), log_prob)
    parts = [model.sample(20, seed=3), model.sample(30, seed=3, first_index=20)]
    assert torch.equal(torch.cat(parts), samples)
    sampling = model.sampling(50, seed=3)
    while not sampling.done:
        sampling.advance(2)
    assert torch.equal(sampling.samples, samples)
    torch.testing.assert_close(sampling.log_prob, log_prob)
    single = make(kind, device=device, dtype=torch.float32)
    assert single.sample(3, seed=0).dtype == torch.float32


@pytest.mark.parametrize("name", available_isas())
@pytest.mark.parametrize("kind", KINDS)
def test_every_instruction_set(name, kind):
    model, x = make(kind), table(9)
    expected = model.log_prob(x)
    with isa(name):
        torch.testing.assert_close(model.log_prob(x), expected)
        samples, log_prob = model.sample(9, seed=1, return_log_prob=True)
        torch.testing.assert_close(model.log_prob(samples), log_prob)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_known_comes_back_and_is_conditioned_on(kind, device):
    model = make(kind, device=device)
    given = table(4, device)
    known = torch.zeros(5, dtype=torch.bool, device=device)
    known[model.order[:3]] = True
    holes = torch.where(known, given, float("nan"))
    samples, log_prob = model.sample(4, seed=2, given=holes, known=known, return_log_prob=True)
    assert torch.equal(samples[:, known], given[:, known])
    of_known = model.log_prob(holes, observed=known)
    torch.testing.assert_close(of_known + log_prob, model.log_prob(samples))
    terms = model.log_prob(given, per_variable=True)
    torch.testing.assert_close(of_known, terms[:, known].sum(1))


@pytest.mark.parametrize("kind", ["NADE", "DeepNADE"])
def test_a_missing_value_is_far_from_nothing(kind):
    """Where 0 is a thousand standard deviations out: what is not observed has no part in anything."""
    model = make(kind).standardize(mean=SHIFT + 1e4, std=SCALE)
    x = torch.where(torch.tensor(REAL), table(3) + 1e4, table(3))
    observed = torch.zeros(5, dtype=torch.bool).index_fill(0, model.order[:2], True)
    loss = -model.log_prob(x.masked_fill(~observed, float("nan")), observed=observed).sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert bool(loss.isfinite()) and all(bool(g.isfinite().all()) for g in gradients if g is not None)


@pytest.mark.parametrize("kind", ["DeepNADE", "DeepNADE, two layers"])
def test_any_columns_may_be_missing(kind, device):
    """Given any subset: known variables first in the order, where the observed marginal is a prefix's."""
    model = make(kind, device=device)
    x = table(6, device)
    generator = torch.Generator().manual_seed(4)
    observed = (torch.rand(6, 5, generator=generator) < 0.5).to(device)
    holes = torch.where(observed, x, float("nan"))
    got = model.log_prob(holes, observed=observed, per_variable=True)
    assert bool((got[~observed] == 0).all())
    for row in range(6):
        order = sorted(model.order.tolist(), key=lambda i, row=row: not bool(observed[row, i]))
        whole = model.log_prob(x[row], order=order, per_variable=True)
        torch.testing.assert_close(got[row], torch.where(observed[row], whole, 0.0))
    samples, log_prob = model.sample(6, seed=1, given=holes, known=observed, return_log_prob=True)
    assert torch.equal(samples[observed], x[observed])
    for row in range(6):
        order = sorted(model.order.tolist(), key=lambda i, row=row: not bool(observed[row, i]))
        whole = model.log_prob(samples[row], order=order, per_variable=True)
        torch.testing.assert_close(whole[~observed[row]].sum(), log_prob[row])
    loss = model.loss(holes, observed=observed).sum()
    loss.backward()
    assert bool(loss.isfinite()) and all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_a_random_loss_is_that_of_the_data_in_its_units():
    model = make("DeepNADE")
    plain = make("DeepNADE", standardized=False)
    x, generator = table(5), torch.Generator()
    with torch.no_grad():
        mean = torch.stack([model.loss(x, generator=generator) for _ in range(2000)]).mean(0)
        orders = [model.in_order(torch.randperm(5)).log_prob(x) for _ in range(400)]
        z = torch.stack([plain.loss((x - SHIFT) / SCALE, generator=generator.manual_seed(8)) for _ in range(1)])
        own = torch.stack([model.loss(x, generator=generator.manual_seed(8)) for _ in range(1)])
    assert not torch.equal(z, own)
    torch.testing.assert_close(mean, -torch.stack(orders).mean(0), rtol=0.05, atol=0.3)


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_learning(kind):
    """Columns that depend on each other: better than the product of the best marginals within some hundred steps."""
    torch.manual_seed(0)
    label = torch.randint(3, (800,))
    real = 100.0 + 20.0 * label + torch.randn(800)
    flag = (real > 115).double()
    level = (label + flag.long()).clamp(max=3)
    x = torch.stack([label.double(), real.double(), flag, level.double(), real.double() * -0.1], 1)
    shape = {"activation": "tanh"} | ({"order": None})
    sizes = {"NADE": (32,), "FVSBN": (), "ARMLP": (16,), "MADE": ([64],)}.get(
        kind, ([64] if "," not in kind else [64, 64],)
    )
    if kind == "FVSBN":
        shape = {}
    model = getattr(models, kind.split(",")[0])(5, *sizes, head=HEAD, **shape).standardize(x)
    x = x.float()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    # The last column follows from another one, so its Gaussian gets narrow: only small steps leave it there.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)
    first = -model.log_prob(x).mean().item()
    for _ in range(150):
        optimizer.zero_grad()
        loss = (model.loss(x) if kind.startswith("Deep") else -model.log_prob(x)).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert -model.log_prob(x).mean().item() < first - 3.0


def test_relabelling_a_category_changes_nothing(device):
    """A category is no number: permuting labels with their weights leaves log_prob as it was."""
    for kind in ("NADE", "FVSBN", "MADE", "DeepNADE"):
        model = make(kind, device=device, order=None)
        x = table(8, device)
        before = model.log_prob(x)
        relabel = torch.tensor([2, 0, 1], device=device)
        x[:, 0] = relabel[x[:, 0].long()].double()
        with torch.no_grad():
            if kind == "MADE":
                inputs = [(model.layers[0].weight, 1, 0)]
                outputs = [(model.layers[-1].weight, 0, 0), (model.layers[-1].bias, 0, 0)]
            elif kind == "FVSBN":
                # By place: the first variable comes last.
                inputs, last = [(model.weight, 0, len(model.weight) - 3)], len(model.bias) - 3
                outputs = [(model.weight, 1, last), (model.bias, 0, last)]
            else:
                inputs, outputs = [(model.in_weight, 0, 0)], [(model.out_weight, 0, 0), (model.out_bias, 0, 0)]
            for weight, dim, first in inputs + outputs:
                own = weight.narrow(dim, first, 3)
                own.copy_(own.index_select(dim, relabel.argsort()).clone())
        torch.testing.assert_close(model.log_prob(x), before)


def test_heads_that_are_alike_are_that_head(device):
    """With one kind throughout a model with a head per variable is the model with that head."""
    x = {
        "Bernoulli": torch.randint(2, (6, 5), device=device),
        "Categorical": torch.randint(3, (6, 5), device=device),
        "GaussianMixture": torch.randn(6, 5, dtype=torch.float64, device=device),
        "LogisticMixture": torch.randint(4, (6, 5), device=device),
    }
    for kind in KINDS:
        for head in (heads.Bernoulli(), heads.Categorical(3), heads.GaussianMixture(2), heads.LogisticMixture(2, 4)):
            one = make(kind, head, device=device, standardized=False)
            each = make(kind, heads.PerVariable([head] * 5), device=device, standardized=False)
            events = x[type(head).__name__]
            torch.testing.assert_close(one.log_prob(events), each.log_prob(events.double()))
            torch.testing.assert_close(one.sample(9, seed=4).double(), each.sample(9, seed=4))


def test_images_of_mixed_channels(device):
    """Event shapes of several dimensions, the default order, contexts and 16-bit weights."""
    head = heads.PerVariable([heads.Bernoulli(), heads.GaussianMixture(2), heads.Categorical(3)] * 4)
    model = models.NADE((3, 2, 2), 7, head=head, context_features=2, device=device, dtype=torch.bfloat16)
    context = torch.randn(5, 2, device=device, dtype=torch.bfloat16)
    samples, log_prob = model.sample((3,), context, seed=0, return_log_prob=True)
    assert samples.shape == (3, 5, 3, 2, 2) and samples.dtype == torch.float32
    torch.testing.assert_close(model.log_prob(samples, context), log_prob, rtol=1e-3, atol=1e-3)
    assert bool(model.distribution(context).support.check(samples).all())
    whole = model.log_prob(samples, context, per_variable=True)
    assert whole.shape == samples.shape


# ---------------------------------------------------------------- standardisation


@pytest.mark.parametrize("kind", ["NADE", "FVSBN", "ARMLP", "MADE", "DeepNADE", "OffsetNADE", "RNN"])
def test_standardized_real_models(kind, device):
    """x in its units, less the logarithm of the scale; samples in the data's units, known ones to the last bit."""
    head, options = heads.GaussianMixture(2), {"device": device, "dtype": torch.float64}
    sizes = {"FVSBN": (), "OffsetNADE": (5, 3), "MADE": ([20],)}.get(kind, (7,))
    torch.manual_seed(3)
    model = getattr(models, kind)(4, *sizes, head=head, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    data = (torch.randn(300, 4, dtype=torch.float64) * torch.tensor([3.0, 1e-3, 1e4, 1.0]) + 1000).to(device)
    shift, scale = data.mean(0), data.std(0, correction=0)
    plain = model.log_prob((data - shift) / scale)
    drawn = model.sample(5, seed=1)
    assert model.standardize(data) is model
    torch.testing.assert_close(model.log_prob(data), plain - scale.log().sum(), rtol=1e-6, atol=1e-6)
    samples, log_prob = model.sample(5, seed=1, return_log_prob=True)
    torch.testing.assert_close(samples, drawn * scale + shift)
    torch.testing.assert_close(model.log_prob(samples), log_prob, rtol=1e-5, atol=1e-5)
    known = torch.tensor([True, True, False, False], device=device)
    some = model.sample(5, seed=1, given=data[0], known=known)
    assert torch.equal(some[:, :2], data[0, :2].expand(5, 2))
    x = data[:3].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(x).sum(), x)
    step = torch.zeros_like(data[:3])
    step[:, 0] = 1e-5
    slope = (model.log_prob(data[:3] + step) - model.log_prob(data[:3] - step)) / 2e-5
    torch.testing.assert_close(gradient[:, 0], slope, rtol=1e-4, atol=1e-5)


def test_nothing_changes_without_a_call(device):
    model = models.RNADE(4, 7, device=device)
    x = torch.randn(3, 4, device=device)
    assert torch.equal(model.standardization(x, torch.float32), x)
    expected = model.log_prob(x)
    assert {"standardization.shift", "standardization.scale"} <= model.state_dict().keys()
    assert models.NADE(4, 7, head=heads.Categorical(3)).standardization is None
    model.standardize(mean=torch.zeros(4), std=torch.ones(4))
    assert torch.equal(model.log_prob(x), expected)


def test_it_is_saved_loaded_moved_and_shared(tmp_path):
    model = make("DeepNADE")
    x = table(4)
    expected = model.log_prob(x)
    model.save(tmp_path)
    assert torch.equal(models.load(tmp_path).log_prob(x), expected)
    other = make("DeepNADE", standardized=False)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.log_prob(x), expected)
    # Another order is another view of the same model.
    reordered = other.in_order([0, 1, 2, 3, 4])
    before = reordered.log_prob(x)
    other.standardize(mean=SHIFT + 1, std=SCALE)
    assert not torch.equal(reordered.log_prob(x), before)
    half = make("NADE", dtype=torch.float32).to(torch.bfloat16)
    assert half.standardization.shift.dtype == torch.float64 and torch.equal(half.standardization.shift, SHIFT)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied.log_prob(x), expected)
    meta = make("NADE").to("meta")
    assert meta.standardization.shift.is_meta


def test_models_saved_before_there_was_one_load(tmp_path):
    import safetensors.torch

    model = models.RNADE(3, 5)
    model.save(tmp_path)
    tensors = {k: v for k, v in safetensors.torch.load_file(tmp_path / "model.safetensors").items() if "stand" not in k}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    x = torch.randn(4, 3)
    assert torch.equal(models.load(tmp_path).log_prob(x), model.log_prob(x))
    other = models.RNADE(3, 5).standardize(mean=torch.ones(3), std=torch.ones(3))
    before = other.log_prob(x)
    with pytest.raises(RuntimeError, match=r"Missing key.*standardization.shift"):
        other.load_state_dict(tensors)
    other = models.RNADE(3, 5).standardize(mean=torch.zeros(3), std=torch.ones(3))
    other.load_state_dict(tensors)
    assert torch.equal(other.log_prob(x), model.log_prob(x)) and not torch.equal(before, model.log_prob(x))


def test_the_mean_to_start_from_is_in_the_datas_units():
    model = make("NADE", order=None)
    model.initialize_from_mean(torch.tensor([float("nan"), 45.0, 0.25, 3.0, -2.01], dtype=torch.float64))
    own = model.out_bias.split(HEAD.counts(5))
    assert bool((own[0] == 0).all())
    torch.testing.assert_close(own[1][2:4].mean().item(), 3.0)
    torch.testing.assert_close(own[2].sigmoid().item(), 0.25)
    torch.testing.assert_close(own[4][1].item(), -1.0)


def test_an_ensemble_of_models_in_different_units():
    members = [make("NADE"), make("NADE", order=None).standardize(mean=SHIFT + 1, std=2 * SCALE)]
    ensemble = models.Ensemble(members)
    samples, log_prob = ensemble.sample(40, seed=0, return_log_prob=True)
    torch.testing.assert_close(ensemble.log_prob(samples), log_prob)
    mean = torch.stack([member.log_prob(samples).exp() for member in members]).mean(0)
    torch.testing.assert_close(log_prob.exp(), mean)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "standardize takes data, or mean and std, got none"),
        ({"mean": SHIFT}, "standardize takes data, or mean and std, got mean"),
        ({"data": table(3), "std": SCALE}, "standardize takes data, or mean and std, got data and std"),
        ({"data": table(3)[:, :4]}, r"data must have shape \(\*batch, 5\) and an event, got \(3, 4\)"),
        ({"data": table(0)}, r"data must have shape \(\*batch, 5\) and an event, got \(0, 5\)"),
        (
            {"data": table(3).index_fill(1, torch.tensor([4]), 0.1)},
            "data must be of more than one value, .* for variable 4",
        ),
        ({"data": table(1)}, "data must be of more than one value, .* for variable 1"),
        (
            {"data": table(3).index_fill(1, torch.tensor([1]), float("nan"))},
            "data must be finite in every real .* variable 1",
        ),
        ({"mean": SHIFT[:4], "std": SCALE}, r"mean must have shape \(5,\), got \(4,\)"),
        ({"mean": SHIFT, "std": SCALE - 0.01}, "std must be positive, got 0.0 for variable 4"),
        ({"mean": SHIFT / 0, "std": SCALE}, "mean must be finite, got inf for variable 1"),
    ],
)
def test_what_standardize_refuses(arguments, message):
    with pytest.raises(ValueError, match=f"NADE: {message}"):
        make("NADE", standardized=False).standardize(**arguments)


def test_what_else_is_refused():
    with pytest.raises(ValueError, match=r"NADE: standardize is for real variables, got the head Bernoulli\(\)"):
        models.NADE(3, 4).standardize(torch.zeros(2, 3))
    for make_one in (lambda head: models.OffsetNADE(5, 4, 2, head=head), lambda head: models.RNN(5, 4, head=head)):
        for head in (HEAD, heads.Categorical([2, 3, 4, 2, 2])):
            with pytest.raises(ValueError, match=": head must have as many parameters for every variable"):
                make_one(head)
    with pytest.raises(ValueError, match="heads must have one entry for each variable, 4, got 5"):
        models.NADE(4, 4, head=HEAD)
    for wrong, message in (
        ([], "got none"),
        ([heads.Bernoulli(), 3], "got 3 at index 1"),
        ([HEAD], "must be Bernoulli, Categorical, GaussianMixture or LogisticMixture"),
        ([heads.Categorical(1)], r"must have one K of 2 to 2\^24, got Categorical\(categories=1\) at index 0"),
        ([heads.Categorical([2, 3])], r"must have one K of 2 to 2\^24"),
        ([heads.Categorical(2**24 + 1)], r"must have one K of 2 to 2\^24"),
    ):
        with pytest.raises(ValueError, match=f"PerVariable: .*{message}"):
            heads.PerVariable(wrong)
    model = make("NADE")
    x = table(3)
    for column, value, message in (
        (0, 3.0, r"Categorical\(categories=3\), .*, got 3.0 at index \(2, 0\)"),
        (0, 0.5, r"Categorical\(categories=3\)"),
        (1, float("inf"), r"GaussianMixture\(components=2\)"),
        (2, 2.0, r"Bernoulli\(\)"),
        (3, 4.0, r"LogisticMixture"),
    ):
        wrong = x.clone()
        wrong[2, column] = value
        with pytest.raises(ValueError, match=f"NADE: x must be in the support of {message}"):
            model.log_prob(wrong)
        assert not bool(model.distribution().support.check(wrong).all())
        with pytest.raises(ValueError, match="NADE: value must be in the support of"):
            state = model.begin()
            while state.variable != column:
                state = model.next(state, x[0, state.variable])
            model.next(state, torch.tensor(value, dtype=torch.float64))


def test_the_head_comes_back_from_its_config():
    assert heads.from_config(HEAD.config()) == HEAD
    assert repr(HEAD).startswith("PerVariable([Categorical(categories=3), GaussianMixture(components=2), Bernoulli()")
    with pytest.raises(ValueError, match="name must be one of"):
        heads.from_config({"name": "PerVariable", "heads": [{"name": "Wrong"}]})


def test_it_compiles(device):
    model = make("NADE", device=device)
    x = table(4, device)
    compiled = torch.compile(model.log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model.log_prob(x))


def test_one_hot_inputs_of_a_row_are_what_the_kernels_gather(device):
    """A NADE's hidden state after all variables, from the weights by hand."""
    model = make("NADE", device=device)
    x = table(3, device)
    z = (x - SHIFT.to(device)) / SCALE.to(device)
    columns = [F.one_hot(x[:, 0].long(), 3), z[:, 1:2], x[:, 2:3], 2 * x[:, 3:4] / 3 - 1, z[:, 4:]]
    by_hand = model.in_bias + torch.cat([column.double() for column in columns], 1) @ model.in_weight
    state = model.begin(3)
    while state.variable is not None:
        state = model.next(state, x[:, state.variable])
    torch.testing.assert_close(state.tensors[0], by_hand)


def test_the_page_about_tables_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "tabular.md").read_text(encoding="utf-8")
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, scope)
    assert abs(float(re.search(r"tensor\((.*?)\)", capsys.readouterr().out)[1]) - 14000) < 1500
    x, filled, observed = scope["x"], scope["filled"], scope["observed"]
    assert torch.equal(filled[observed], x[observed]) and bool(filled.isfinite().all())


def test_a_category_that_is_nan_has_no_log_prob(device):
    """On the CPU the model refuses it, unless told not to look. On CUDA it is not looked at."""
    model = make("NADE", device=device)
    model.validate_args = False
    x = table(3, device)
    x[1, 0] = float("nan")
    assert model.log_prob(x).isnan().tolist() == [False, True, False]
