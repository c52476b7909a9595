"""Models of a table whose columns are of different kinds."""

import itertools

import torch

from ar_fast import heads, models

HEAD = heads.PerVariable(
    [
        heads.Categorical(3),
        heads.GaussianMixture(2),
        heads.Bernoulli(),
        heads.LogisticMixture(2, levels=4),
        heads.GaussianMixture(1),
    ]
)


DISCRETE = {0: 3, 2: 2, 3: 4}


SHIFT = torch.tensor([0.0, 30.0, 0.0, 0.0, -2.0], dtype=torch.float64)


SCALE = torch.tensor([1.0, 5.0, 1.0, 1.0, 0.01], dtype=torch.float64)


REAL = [False, True, False, False, True]


KINDS = ["NADE", "FVSBN", "ARMLP", "MADE", "DeepNADE", "DeepNADE, two layers"]


def make(kind, head=HEAD, *, order=(3, 1, 0, 4, 2), device="cpu", dtype=torch.float64, standardized=True, **options):
    """A model whose conditionals depend on each variable before, in units far from standard ones."""
    variables = options.pop("variables", 5)
    sizes = {
        "NADE": (13, "tanh"), "FVSBN": (), "ARMLP": (5, "tanh"), "MADE": ([37, 29], "tanh"), "DeepNADE": ([13], "tanh"),
        "DeepNADE, two layers": ([9, 13], "tanh"),
    }[kind]  # fmt: skip
    kind = kind.split(",")[0]
    model = getattr(models, kind)(variables, *sizes, head=head, order=order, device=device, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.5 / parameter.shape[-1] ** 0.5 if kind == "MADE" and parameter.dim() == 2 else 0.4
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model.standardize(mean=SHIFT, std=SCALE) if standardized else model


def table(rows, device="cpu"):
    """Random rows in the support, (rows, 5)."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, 5, dtype=torch.float64, generator=generator) * SCALE + SHIFT
    for column, size in DISCRETE.items():
        x[:, column] = torch.randint(size, (rows,), generator=generator)
    return x.to(device)


def grid(points=401, width=12.0):
    """All discrete values and, for each, a grid of the real ones in the data's units: (cells, points, points, 5)."""
    cells = torch.tensor(list(itertools.product(*map(range, DISCRETE.values())))).double()
    x = torch.zeros(len(cells), points, points, 5, dtype=torch.float64)
    x[..., list(DISCRETE)] = cells[:, None, None]
    z = torch.linspace(-width, width, points, dtype=torch.float64)
    x[..., 1] = z[:, None] * SCALE[1] + SHIFT[1]
    x[..., 4] = z * SCALE[4] + SHIFT[4]
    return x, (z[1] - z[0]) ** 2 * SCALE[1] * SCALE[4]
