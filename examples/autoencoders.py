"""An autoencoder, the same layers as a MADE, and a variational autoencoder (VAE), on 8 x 8 digits; ARMLP and NADE.

Run: python examples/autoencoders.py    prints the tables of docs/autoencoders.md and writes its pictures to --out
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

import ar_fast
from ar_fast.models import ARMLP, MADE, NADE
from ar_fast.training import Settings, Split, log_likelihoods, train


def digits() -> tuple[Split, list[Tensor]]:
    """1,200, 297 and 300 digits of 64 binary pixels, and their labels."""
    data = load_digits()
    images, labels = torch.from_numpy(data.data >= 8).float(), torch.from_numpy(data.target)
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    sizes = [1200, 297, 300]
    return Split(*images[shuffled].split(sizes)), list(labels[shuffled].split(sizes))


def fit(module: nn.Module, loss: Callable[[Tensor], Tensor], x: Tensor, epochs: int, rate: float = 3e-3) -> None:
    """Adam on shuffled batches of 100, with a rate that falls to zero by a cosine."""
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in x[torch.randperm(len(x))].split(100):
            optimizer.zero_grad()
            loss(batch).mean().backward()
            optimizer.step()
        schedule.step()


def make_autoencoder(variables: int = 64, hidden: int = 200) -> nn.Sequential:
    """One hidden layer; the outputs are probabilities that a pixel is 1."""
    return nn.Sequential(nn.Linear(variables, hidden), nn.ReLU(), nn.Linear(hidden, variables), nn.Sigmoid())


def reconstruction(autoencoder: nn.Module, x: Tensor) -> Tensor:
    """The cross-entropy of each event with its own reconstruction, in nats, (N,). No log-likelihood of any model."""
    return F.binary_cross_entropy(autoencoder(x), x, reduction="none").sum(1)


@torch.no_grad()
def pixel_by_pixel(autoencoder: nn.Module, count: int, variables: int = 64) -> Tensor:
    """Draws as if output i were p(x_i = 1 | x_<i): pixel i from output i, while the pixels to come are 0."""
    x = torch.zeros(count, variables)
    for i in range(variables):
        x[:, i] = torch.bernoulli(autoencoder(x)[:, i])
    return x


class VAE(nn.Module):
    """p(x) = integral of p(z) p(x | z) over the codes z, with p(z) standard normal (Kingma and Welling, ICLR 2014).

    The encoder gives q(z | x), a normal distribution with a mean and a standard deviation for each code, the decoder
    the logits of p(x | z).
    """

    def __init__(self, variables: int = 64, hidden: int = 200, codes: int = 16) -> None:
        super().__init__()
        self.codes = codes
        self.encoder = nn.Sequential(nn.Linear(variables, hidden), nn.ReLU(), nn.Linear(hidden, 2 * codes))
        self.decoder = nn.Sequential(nn.Linear(codes, hidden), nn.ReLU(), nn.Linear(hidden, variables))

    def posterior(self, x: Tensor) -> torch.distributions.Normal:
        mean, log_std = self.encoder(x).chunk(2, -1)
        return torch.distributions.Normal(mean, log_std.exp())

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z)."""
        return -F.binary_cross_entropy_with_logits(self.decoder(z), x.expand(*z.shape[:-1], -1), reduction="none").sum(
            -1
        )

    def elbo(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two parts of the lower bound of log p(x), (N,) each: E log p(x | z) from one draw, and KL(q || p(z))."""
        q = self.posterior(x)
        divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1)
        return self.log_likelihood(x, q.rsample()), divergence

    @torch.no_grad()
    def importance_bound(self, x: Tensor, draws: int) -> Tensor:
        """log of the mean of p(x, z) / q(z | x) over so many draws of z, (N,): in expectation a lower bound of log p(x)
        that rises with the draws (Burda, Grosse, Salakhutdinov, ICLR 2016)."""
        q = self.posterior(x)
        z = q.sample((draws,))
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
        ratio = self.log_likelihood(x, z) + prior - q.log_prob(z).sum(-1)
        return ratio.logsumexp(0) - math.log(draws)

    @torch.no_grad()
    def log_prob(self, x: Tensor, points: int = 601, reach: float = 6.0) -> Tensor:
        """log p(x) by the integral itself, on a grid of points to the power of codes: for two codes only."""
        if self.codes != 2:
            raise ValueError(f"VAE.log_prob: codes must be 2, got {self.codes}")
        line = torch.linspace(-reach, reach, points)
        z = torch.cartesian_prod(line, line)
        logits = self.decoder(z).double()
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1).double() + 2 * math.log(line[1] - line[0])
        constant = prior - F.softplus(logits).sum(1)
        return torch.cat([(part.double() @ logits.T + constant).logsumexp(1) for part in x.split(20)]).float()

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        return torch.bernoulli(self.decoder(torch.randn(count, self.codes)).sigmoid())


def mean(values: Tensor) -> str:
    return f"{values.mean().item():.2f} ± {values.std().item() / len(values) ** 0.5:.2f}"


def table(header: list[str], rows: list[list[str]]) -> None:
    rule = ["---", *["---:"] * (len(header) - 1)]
    print("", *(f"| {' | '.join(row)} |" for row in [header, rule, *rows]), "", sep="\n")


def probe(codes: Tensor, labels: Tensor, test_codes: Tensor, test_labels: Tensor) -> str:
    """The share of test images that a linear classifier of the codes gets right."""
    scale = codes.std(0).clamp(min=0.1)
    classifier = LogisticRegression(max_iter=1000, C=0.1).fit((codes / scale).numpy(), labels.numpy())
    return f"{100 * classifier.score((test_codes / scale).numpy(), test_labels.numpy()):.1f} %"


def save_images(path: Path, lines: dict[str, Tensor]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(lines), figsize=(7.2, 0.62 * len(lines)), layout="constrained", squeeze=False)
    for axis, (name, images) in zip(axes[:, 0], lines.items(), strict=True):
        padded = F.pad(images.reshape(-1, 8, 8), (1, 1, 1, 1), value=0.2)
        axis.imshow(1 - padded.movedim(0, 1).flatten(1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[], frame_on=False)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def save_masks(path: Path, model: MADE) -> None:
    """The masks of a small MADE, and their product: which output sees which input."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    first, second = (layer.mask.to_dense().float() for layer in model.layers)
    panels = {
        "hidden units see inputs": first,
        "outputs see hidden units": second,
        "outputs see inputs": second @ first,
    }
    figure, axes = pyplot.subplots(1, 3, figsize=(7.2, 2.6), layout="constrained")
    for axis, (name, mask) in zip(axes, panels.items(), strict=True):
        axis.pcolormesh((mask.flip(0) > 0).numpy(), cmap="gray_r", edgecolors="0.8", linewidth=0.5, vmin=0, vmax=1.3)
        axis.set(title=name, xticks=[], yticks=[], aspect="equal")
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def overfitting(data: Split, epochs: int) -> None:
    """ARMLP and NADE, trained to the end on few images: no early stopping, no weight decay."""
    rows = []
    for count in (100, 300, 1000):
        for make, hidden, rate in ((ARMLP, 16, 0.01), (NADE, 100, 0.01)):
            torch.manual_seed(0)
            model = make(64, hidden)
            images = data.train[:count]
            model.initialize_from_mean(images.double().mean(0).clamp(0.01, 0.99))
            settings = Settings(epochs, 50, rate, weight_decay=0.0, patience=epochs)
            best = [-math.inf]
            train(
                model, Split(images, images, data.test), settings, progress=False,
                on_epoch=lambda _, now, best=best: best.append(log_likelihoods(now, data.validation).mean().item()),
            )  # fmt: skip
            trained, tested = log_likelihoods(model, images), log_likelihoods(model, data.test)
            gap = (trained.mean() - tested.mean()).item()
            cells = [mean(trained), mean(tested), f"{gap:.2f}", f"{max(best):.2f}"]
            rows.append([str(count), make.__name__, f"{model.count_parameters():,}", *cells])
    table(["images", "model", "parameters", "train", "test", "difference", "best epoch, validation"], rows)


def main(epochs: int = 200, out: str = "out", draws: int = 1000) -> dict[str, float]:
    """Returns figures of the tables, in nats."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    data, labels = digits()
    test = data.test

    autoencoder = make_autoencoder()
    fit(autoencoder, lambda x: reconstruction(autoencoder, x), data.train, epochs)
    seen = ar_fast.check_autoregressive(autoencoder, 64)
    print(f"The autoencoder: {len(seen.violations):,} pairs of an output and an input that it must not see.")
    autoencoder_loss = reconstruction(autoencoder, test).detach()

    made = MADE.from_autoencoder(autoencoder, 64)
    print(f"Its MADE: {ar_fast.check_autoregressive(made, 64)}.")
    masked = log_likelihoods(made, test)
    settings = Settings(60, 100, 0.03, 0.3, patience=15)
    train(made, data, settings, progress=False)

    nade = NADE(64, 100)
    nade.initialize_from_mean(data.train.double().mean(0).clamp(0.01, 0.99))
    train(nade, data, Settings(60, 100, 0.03, 0.1, patience=15), progress=False)

    vaes = {}
    for codes in (2, 16):
        vaes[codes] = VAE(codes=codes)

        def loss(x: Tensor, vae: VAE = vaes[codes]) -> Tensor:
            likelihood, divergence = vae.elbo(x)
            return divergence - likelihood

        fit(vaes[codes], loss, data.train, epochs)

    trained = log_likelihoods(made, test)
    table(
        ["model", "cross-entropy of its own reconstruction", "log p(x)"],
        [
            ["autoencoder", mean(autoencoder_loss), "it has none"],
            ["its MADE, weights only masked", "", mean(masked)],
            ["its MADE, trained on", "", mean(trained)],
            ["NADE", "", mean(log_likelihoods(nade, test))],
        ],
    )

    columns = [[], []]
    bounds = {}
    for column, (codes, vae) in zip(columns, vaes.items(), strict=True):
        with torch.no_grad():
            parts = [vae.elbo(test) for _ in range(20)]
        likelihood, divergence = (torch.stack(values).mean(0) for values in zip(*parts, strict=True))
        bounds[codes] = {1: likelihood - divergence}
        for count in (10, 100, draws):
            bounds[codes][count] = vae.importance_bound(test, count)
        column += [mean(likelihood), mean(divergence), *(mean(bound) for bound in bounds[codes].values())]
        column.append(mean(vae.log_prob(test)) if codes == 2 else "")
    names = [
        "E log p(x given z)",
        "KL(q, p(z))",
        "ELBO",
        *(f"importance-weighted, {k:,} draws" for k in (10, 100, draws)),
    ]
    rows = [[name, *cells] for name, *cells in zip([*names, "log p(x), integral"], *columns, strict=True)]
    table(["VAE", "2 codes", "16 codes"], rows)

    hidden = autoencoder[:2]
    with torch.no_grad():
        features = {
            "pixels": lambda x: x,
            "autoencoder, 200 units": hidden,
            "MADE trained on, 200 units": lambda x: F.relu(made.layers[0](x)),
            "NADE, 100 units after the last pixel": lambda x: (x @ nade.in_weight + nade.in_bias).sigmoid(),
            "VAE, 2 code means": lambda x: vaes[2].posterior(x).mean,
            "VAE, 16 code means": lambda x: vaes[16].posterior(x).mean,
        }
        scores = [[name, probe(f(data.train), labels[0], f(test), labels[2])] for name, f in features.items()]
    table(["a linear classifier sees", "test images right"], scores)

    with torch.no_grad():
        save_images(
            folder / "autoencoders-samples.png",
            {
                "test images": test[:16],
                "autoencoder,\nreconstructed": autoencoder(test[:16]),
                "autoencoder,\npixel by pixel": pixel_by_pixel(autoencoder, 16),
                "its MADE": made.sample(16, seed=0).float(),
                "NADE": nade.sample(16, seed=0).float(),
                "VAE, 2 codes": vaes[2].sample(16),
                "VAE, 16 codes": vaes[16].sample(16),
            },
        )
    save_masks(folder / "autoencoders-masks.png", MADE.from_autoencoder(make_autoencoder(8, 16), 8))
    overfitting(data, max(1, epochs // 2))
    return {
        "reconstruction": autoencoder_loss.mean().item(),
        "masked": masked.mean().item(),
        "made": trained.mean().item(),
        "elbo": bounds[2][1].mean().item(),
        "bound": bounds[2][draws].mean().item(),
        "exact": vaes[2].log_prob(test).mean().item(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200, help="of the autoencoder and the VAEs")
    parser.add_argument("--out", default="out", help="folder of the pictures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    main(given.epochs, given.out)
