"""A NADE on scikit-learn's 8 x 8 digits: a training loop, exact log-likelihoods, samples and completions.

Run: python examples/train_nade.py
"""

import torch
from sklearn.datasets import load_digits

from ar_fast.models import NADE


def main(epochs: int = 30) -> float:
    """Returns the test log-likelihood in nats per image."""
    torch.manual_seed(0)
    images = torch.from_numpy(load_digits().images > 7)
    images = images[torch.randperm(len(images))]
    train, test = images[:1500], images[1500:]

    model = NADE((8, 8), hidden_features=100)
    model.initialize_from_mean(train.double().mean(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(100):
            loss = -model.log_prob(batch).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    with torch.no_grad():
        nats = model.log_prob(test).mean().item()
    print(f"test log-likelihood: {nats:.2f} nats per image")

    known = torch.zeros(8, 8, dtype=torch.bool)
    known[:4] = True
    completed = model.sample(given=test[0], known=known, seed=0)
    for row in completed.int().tolist():
        print("".join(".#"[pixel] for pixel in row))
    return nats


if __name__ == "__main__":
    main()
