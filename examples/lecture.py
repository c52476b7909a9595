# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Autoregressive models in eleven steps
#
# From the chain rule to the order of the variables: one formula, a few lines of code, one picture and one exercise for
# each step. The data are scikit-learn's 8 x 8 digits, a pixel 1 where at least half of it is ink: 1,200 images to train
# on, 297 to choose an epoch, 300 to test. Nats are mean log-likelihoods, and more is better. The notebook runs on two
# CPU cores in a few minutes, and another processor may round to slightly different figures.
#
# The tools of the lecture come first; they may be read later.

# %%
import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

import ar_fast
from ar_fast import models, orderings
from ar_fast.training import Settings, Split, log_likelihoods, train

torch.manual_seed(0)
torch.set_num_threads(1)
plt.rcParams["figure.dpi"] = 72
images = torch.from_numpy(load_digits().images >= 8).float()
images = images[torch.randperm(len(images))]
data = Split(*images.split([1200, 297, 300]))
average = data.train.double().mean(0).clamp(0.001, 0.999)


def share(event):
    """The share of images in which something is so."""
    return event.float().mean().item()


def fit(model, rate, decay=0.1, train_on=data.train, epochs=60):
    """Trains by maximum likelihood, keeps the epoch that is best on the validation images, and prints test nats."""
    model.initialize_from_mean(average)
    settings = Settings(epochs, 100, rate, decay, patience=15)
    history = train(model, Split(train_on, data.validation, data.test), settings, progress=False).history
    nats = log_likelihoods(model, data.test)
    print(f"{type(model).__name__}: {model.count_parameters():,} parameters, test {nats.mean():.2f}")
    return history


def descend(parameters, loss, epochs=150):
    """Adam on a loss of batches of images, (B, 64)."""
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    for _ in range(epochs):
        for batch in data.train.flatten(1)[torch.randperm(len(data.train))].split(100):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()


@torch.no_grad()
def pixel_by_pixel(network, count=16):
    """Draws each pixel from its output while the pixels to come are 0, as if the network were autoregressive."""
    x = torch.zeros(count, 64)
    for i in range(64):
        x[:, i] = torch.bernoulli(network(x)[:, i])
    return x


def elbo(encoder, decoder, x):
    """The lower bound of log p(x) of a VAE, from one draw of the codes of each image."""
    mean, log_std = encoder(x).chunk(2, 1)
    codes = mean + log_std.exp() * torch.randn_like(mean)
    log_likelihood = -F.binary_cross_entropy_with_logits(decoder(codes), x, reduction="none").sum(1)
    return log_likelihood - (mean**2 / 2 + (2 * log_std).exp() / 2 - log_std - 0.5).sum(1)


def show(rows, height=8, width=8):
    """A line of images for each name."""
    _, axes = plt.subplots(len(rows), figsize=(8, 0.7 * len(rows)), squeeze=False, layout="constrained")
    for axis, (name, pictures) in zip(axes[:, 0], rows.items(), strict=True):
        framed = F.pad(pictures.detach().float().reshape(-1, height, width)[:16], (1, 1, 1, 1), value=0.2)
        axis.imshow(1 - framed.movedim(0, 1).flatten(1).numpy(), cmap="gray", vmin=0, vmax=1)
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[], frame_on=False)
    plt.show()


def bars(labels, series, ylabel):
    """Groups of bars."""
    for index, (name, values) in enumerate(series.items()):
        plt.bar([place + 0.25 * index for place in range(len(labels))], values, 0.22, label=name)
    plt.xticks([place + 0.125 * (len(series) - 1) for place in range(len(labels))], labels)
    plt.ylabel(ylabel)
    plt.legend()
    plt.gcf().set_size_inches(7, 2.6)
    plt.show()


def matrices(named):
    """Matrices beside each other, with blue for negative and red for positive numbers."""
    _, axes = plt.subplots(1, len(named), figsize=(8, 3), squeeze=False, layout="constrained")
    for axis, (name, matrix) in zip(axes[0], named.items(), strict=True):
        limit = matrix.abs().max().item()
        axis.imshow(matrix.numpy(), cmap="coolwarm", vmin=-limit, vmax=limit)
        axis.set(title=name, xticks=[], yticks=[])
    plt.show()


# %% [markdown]
# ## 1. The chain rule
#
# $$p(x) = \prod_{i=1}^{D} p(x_i \mid x_1, \ldots, x_{i-1})$$
#
# This holds for every distribution and every order. Two pixels beside each other, counted in all images: the product of
# the first one's share and the second one's share *given the first* is the joint share.
# Without the condition it is not.

# %%
left, right = images[:, 3, 3], images[:, 3, 4]
pairs = [(0, 0), (0, 1), (1, 0), (1, 1)]
chain = [share(left == i) * share(right[left == i] == j) for i, j in pairs]
apart = [share(left == i) * share(right == j) for i, j in pairs]
bars(pairs, {"p(left) p(right | left), the joint": chain, "p(left) p(right)": apart}, "probability")

# %% [markdown]
# **Exercise.** Write the chain rule for the right pixel first. Are the factors the same? Is the product?

# %% [markdown]
# ## 2. Logistic regression
#
# $$p(x_i = 1 \mid x_{<i}) = \sigma\Big(b_i + \sum_{j<i} w_{ij} x_j\Big)$$
#
# A table of p(x_i given all before) would need a row for each of 2^(i-1) pasts. A logistic regression needs i numbers.
# The picture shows how much each of the 36 pixels before pixel 36 speaks for ink there.

# %%
before, pixel = images.flatten(1)[:, :36], images.flatten(1)[:, 36]
regression = LogisticRegression(C=0.1).fit(before[:1200], pixel[:1200])
print(f"right on test images: {regression.score(before[1497:], pixel[1497:]):.2f}, always 1: {share(pixel[1497:]):.2f}")
weights = F.pad(torch.tensor(regression.coef_[0]), (0, 28)).reshape(8, 8)
matrices({"weights of the pixels before pixel 36": weights})

# %% [markdown]
# **Exercise.** Draw the weights for pixel 28. Which pixels matter, and why are those at the left edge close to 0?

# %% [markdown]
# ## 3. FVSBN
#
# $$\log p(x) = \sum_{i} \log p(x_i \mid x_{<i}), \qquad \theta = b + W x, \quad W \text{ strictly lower triangular}$$
#
# One logistic regression for every pixel is a *fully visible sigmoid belief network*. It is trained all at once, with
# one triangular matrix, and drawn from pixel by pixel. The loss is convex.

# %%
fvsbn = models.FVSBN((8, 8))
fit(fvsbn, 0.1)
show({"test images": data.test, "FVSBN": fvsbn.sample(16, seed=0)})

# %% [markdown]
# **Exercise.** How many parameters does it have for D pixels? Compare with what was printed.

# %% [markdown]
# ## 4. A network for each variable
#
# $$p(x_i = 1 \mid x_{<i}) = \sigma\big(c_i + v_i^\top \sigma(b_i + W_i x_{<i})\big)$$
#
# Each regression becomes a network with hidden units of its own: D (D - 1) / 2 H weights, none of them shared. On 300
# images the two curves part: it learns what is peculiar to those.
# [Tables for 100, 300 and 1,000 images](../docs/autoencoders.md).

# %%
history = fit(models.ARMLP((8, 8), 16), 0.03, 0.0, train_on=data.train[:300])
for part in ("train", "validation"):
    plt.plot([entry[part] for entry in history], label=part)
plt.gcf().set_size_inches(7, 2.6)
plt.legend(), plt.xlabel("epoch"), plt.ylabel("nats"), plt.show()

# %% [markdown]
# **Exercise.** Train it on all 1,200 images and with weight decay. Which of the two closes more of the gap?

# %% [markdown]
# ## 5. NADE
#
# $$a_1 = b, \quad p(x_i = 1 \mid x_{<i}) = \sigma\big(c_i + v_i^\top \sigma(a_i)\big), \quad a_{i+1} = a_i + w_i x_i$$
#
# The networks share their input weights: pixel j adds the same vector to all networks after it. So one network's
# pre-activations follow from those of the network before, and D^2 H becomes D H, in memory and in time.

# %%
nade = models.NADE((8, 8), hidden_features=100)
fit(nade, 0.03)
top = torch.zeros(8, 8, dtype=torch.bool).index_fill(0, torch.arange(4), True)
completed = nade.sample(16, given=data.test[0], known=top, seed=0)
show({"NADE": nade.sample(16, seed=0), "a digit, its top half\ncompleted": torch.cat([data.test[:1], completed])})

# %% [markdown]
# **Exercise.** The top half can be completed exactly. Why can't the left half, in this order? Which order
# would allow it?

# %% [markdown]
# ## 6. Weights by offset
#
# $$a_i = b + \sum_{j < i,\; j \in \text{window}(i)} w_{i - j}\, x_j$$
#
# Weights may depend on how far back a pixel lies, and not on which one it is. The model then has as many weights
# for an image of any size. Trained on 8 x 8 digits, it draws other sizes: strokes, since it does not know where a digit
# ends.

# %%
offset = models.OffsetNADE((8, 8), hidden_features=64, window=(4, 4))
fit(offset, 0.03)
show({"drawn at 16 x 12": offset.resized((16, 12)).sample(12, seed=0)}, 16, 12)

# %% [markdown]
# **Exercise.** Give it a window of (2, 2), then (7, 7). What does each one lose or gain, in nats and in the picture?

# %% [markdown]
# ## 7. An autoencoder is not a model
#
# $$\hat x = \sigma(V f(W x + b) + c), \qquad \text{loss} = -\sum_i x_i \log \hat x_i + (1 - x_i) \log(1 - \hat x_i)$$
#
# The loss looks like a negative log-likelihood, and goes towards 0, which no model of these images could
# reach: every output sees the pixel that it predicts, and copies it. Drawn from pixel by pixel, it gives rubbish.

# %%
autoencoder = nn.Sequential(nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 64), nn.Sigmoid())
descend(autoencoder.parameters(), lambda x: F.binary_cross_entropy(autoencoder(x), x, reduction="sum") / len(x))
print(f"{len(ar_fast.check_autoregressive(autoencoder, 64).violations):,} outputs and inputs that they must not see")
reconstructed = autoencoder(data.test.flatten(1)[:16])
show({"test images": data.test, "reconstructed": reconstructed, "pixel by pixel": pixel_by_pixel(autoencoder)})

# %% [markdown]
# **Exercise.** Why are there 2,080 such pairs? Would fewer hidden units than pixels make it a density?

# %% [markdown]
# ## 8. A variational autoencoder
#
# $$\log p(x) \ge \mathrm{E}_{q(z \mid x)} \log p(x \mid z) - \mathrm{KL}\big(q(z \mid x) \,\|\, p(z)\big)$$
#
# A VAE is a density: codes z from a normal distribution, and pixels that are independent given z. Its log-likelihood is
# an integral over z, of which training sees a lower bound. It draws all pixels at once.
# [The bound against the integral itself](../docs/autoencoders.md).

# %%
encoder = nn.Sequential(nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 32))
decoder = nn.Sequential(nn.Linear(16, 200), nn.ReLU(), nn.Linear(200, 64))
descend([*encoder.parameters(), *decoder.parameters()], lambda x: -elbo(encoder, decoder, x).mean())
print(f"test, lower bound: {elbo(encoder, decoder, data.test.flatten(1)).mean():.2f}")
show({"VAE": torch.bernoulli(decoder(torch.randn(16, 16)).sigmoid())})

# %% [markdown]
# **Exercise.** What does the bound become if q(z | x) is p(z)? What must the decoder then do?

# %% [markdown]
# ## 9. MADE
#
# $$\theta = c + (V \odot M_V)\, f\big(b + (W \odot M_W)\, x\big), \qquad M_V M_W \text{ strictly lower triangular}$$
#
# The autoencoder's own layers, with masks: every path from a pixel to an output before it, or to its own, is cut. Now
# the loss is an exact negative log-likelihood, from one pass.

# %%
made = models.MADE.from_autoencoder(autoencoder, (8, 8))
print(ar_fast.check_autoregressive(made, (8, 8)))
fit(made, 0.03, 0.3)
first, second = (layer.mask.to_dense().float() for layer in made.layers)
matrices({"units see pixels": first, "outputs see units": second, "outputs see pixels": (second @ first).sign()})

# %% [markdown]
# **Exercise.** Draw the third matrix for `order=ar_fast.orderings.snake((8, 8))`. It is by position: what changes?

# %% [markdown]
# ## 10. A recurrent network
#
# $$h_i = f(h_{i-1}, x_{i-1}), \qquad p(x_i = 1 \mid x_{<i}) = \sigma(c + v^\top h_i)$$
#
# One network for all positions, which keeps a summary of the past. It has no weights of a pixel's own, so it must count
# in order to know where it is. That is slow to learn, and so it is behind the others here.

# %%
rnn = models.RNN((8, 8), hidden_features=48)
fit(rnn, 0.01, 0.01, epochs=40)
show({"RNN": rnn.sample(16, seed=0)})

# %% [markdown]
# **Exercise.** NADE's pre-activations are a summary of the past too. Write its step as f, and say what RNN shares more.

# %% [markdown]
# ## 11. The order
#
# $$p(x) = \prod_{i=1}^{D} p(x_{o_i} \mid x_{o_1}, \ldots, x_{o_{i-1}}) \quad \text{for any permutation } o$$
#
# The chain rule holds in every order, but a model is another one in each. For FVSBN, NADE and MADE, which have
# weights of each pixel's own, it hardly matters which: over five random orders the test nats spread by 0.06 to 0.09.
# That is less than the standard error of 0.25, and about the error of a difference on the same images. An RNN shares
# its weights between positions. In raster order, and backwards, the neighbour in the row before lies 8 steps back
# everywhere: -19.7 and -19.6 nats. In snake order it lies 1 to 15 steps back (-26.9), in random orders anywhere
# (-22.7 to -28.4); independent pixels reach -25.3. One training for each order, from the same first parameters, of at
# most 60 epochs, which is little for an RNN.
# `python -m bench.orders` repeats it:
#
# | test nats | raster | reversed | snake | random orders | spread of these | standard error | of a difference |
# |---|---:|---:|---:|---:|---:|---:|---:|
# | FVSBN | -18.44 | -18.40 | -18.43 | -18.54 to -18.39 | 0.06 | 0.25 | 0.05 |
# | NADE | -16.82 | -16.84 | -16.85 | -17.00 to -16.81 | 0.08 | 0.26 | 0.08 |
# | MADE | -17.16 | -16.96 | -17.35 | -17.19 to -16.94 | 0.09 | 0.25 | 0.09 |
# | RNN | -19.71 | -19.61 | -26.93 | -28.39 to -22.67 | 2.27 | 0.24 | 0.20 |
#
# [All five random orders](../bench/results/orders-8x8.md).

# %%
names = {"raster": orderings.raster((8, 8)), "snake": orderings.snake((8, 8)), "random": orderings.random((8, 8), 0)}
ordered = {name: models.NADE((8, 8), 100, order=order) for name, order in names.items()}
for model in ordered.values():
    fit(model, 0.03)
show({name: model.sample(16, seed=0) for name, model in ordered.items()})

# %% [markdown]
# **Exercise.** In which of these orders can the upper half be completed exactly, and in which the lower half?
