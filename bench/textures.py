"""python -m bench.textures: learns a texture from one image and draws larger pieces of it, pixel by pixel.

Two OffsetNADEs, trained on random crops: one of the image in black and white, which draws 512 x 512 pixels, and one of
its grey levels, a mixture of logistic distributions, which draws 256 x 256. Writes a picture of each, with the seconds
taken, beside the image that it learnt from.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.image import imread, imsave
from torch import Tensor

from ar_fast import heads
from ar_fast._progress import progress_bar
from ar_fast.models import OffsetNADE


@dataclass(frozen=True)
class Recipe:
    """shrink: the image is averaged over squares of as many pixels; window, hidden_features: of the model; crop, batch:
    what a step of Adam sees; the learning rate falls to zero with a cosine. size, temperature: of the picture."""

    shrink: int
    window: tuple[int, int]
    hidden_features: int
    crop: int
    batch: int
    steps: int
    learning_rate: float
    size: int
    temperature: float


BINARY = Recipe(
    shrink=4,
    window=(12, 10),
    hidden_features=48,
    crop=48,
    batch=8,
    steps=1500,
    learning_rate=6e-3,
    size=512,
    temperature=0.9,
)
GREY = Recipe(
    shrink=4,
    window=(10, 10),
    hidden_features=64,
    crop=40,
    batch=8,
    steps=1500,
    learning_rate=4e-3,
    size=256,
    temperature=0.9,
)
COMPONENTS = 5


def read(path: Path) -> Tensor:
    """The grey levels of an image, (H, W) in 0 ... 255 in float32."""
    pixels = torch.from_numpy(imread(path).copy()).float()
    if pixels.dim() == 3:
        pixels = pixels[..., :3].mean(-1)
    return pixels * 255 if pixels.max() <= 1 else pixels


def shrink(image: Tensor, factor: int) -> Tensor:
    return torch.nn.functional.avg_pool2d(image[None, None], factor)[0, 0]


def flatten_light(image: Tensor, reach: int) -> Tensor:
    """The image minus its average over a neighbourhood, so that a threshold does not show where the light fell."""
    padded = torch.nn.functional.pad(image[None, None], (reach,) * 4, mode="reflect")
    return image - torch.nn.functional.avg_pool2d(padded, 2 * reach + 1, stride=1)[0, 0]


def train(model: OffsetNADE, image: Tensor, recipe: Recipe, seed: int) -> tuple[float, float]:
    """Nats per pixel over the last tenth of the steps, and the seconds taken."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    start, losses = time.perf_counter(), []
    for _ in progress_bar(range(recipe.steps), unit="step", desc="training"):
        rows = torch.randint(image.shape[0] - recipe.crop + 1, (recipe.batch,), generator=generator).tolist()
        columns = torch.randint(image.shape[1] - recipe.crop + 1, (recipe.batch,), generator=generator).tolist()
        crops = [image[r : r + recipe.crop, c : c + recipe.crop] for r, c in zip(rows, columns, strict=True)]
        optimizer.zero_grad()
        loss = -model.log_prob(torch.stack(crops)).mean() / recipe.crop**2
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    last = losses[-max(1, recipe.steps // 10) :]
    return sum(last) / len(last), time.perf_counter() - start


def texture(name: str, image: Tensor, head: heads.Head, recipe: Recipe, seed: int, out: Path) -> str:
    """Trains, draws and writes one texture; returns the line to print."""
    torch.manual_seed(seed)
    model = OffsetNADE((recipe.crop, recipe.crop), recipe.hidden_features, recipe.window, head=head)
    model.initialize_from_mean(image.float().mean().expand(recipe.crop, recipe.crop))
    nats, trained = train(model, image, recipe, seed)
    start = time.perf_counter()
    sample = model.resized((recipe.size, recipe.size)).sample(seed=seed, temperature=recipe.temperature)
    drawn = time.perf_counter() - start
    top = 1 if isinstance(head, heads.Bernoulli) else head.levels - 1
    for kind, pixels in (("image", image), ("sample", sample)):
        path = out / f"texture-{name}-{kind}.png"
        imsave(path, pixels.numpy(), cmap="gray", vmin=0, vmax=top, pil_kwargs={"optimize": True})
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{name}: {recipe.size} x {recipe.size}, window {recipe.window}, H = {recipe.hidden_features}, {parameters} "
        f"parameters, {nats:.3f} nats per pixel; {trained:.1f} s of training, {drawn:.2f} s of drawing"
    )


def _default_image() -> Path | None:
    try:
        import skimage
    except ImportError:
        return None
    path = Path(skimage.__file__).parent / "data" / "brick.png"
    return path if path.is_file() else None


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.textures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="an image (default: scikit-image's brick.png, where it is installed)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the crops and the pictures (default: 0)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--only", choices=("binary", "grey"), help="one of the two")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: shows that all runs")
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the pictures go (default: out)")
    arguments = parser.parse_args(given)
    path = arguments.data or _default_image()
    if path is None or not path.is_file():
        print(f"bench.textures: --data must be an image, got {path}", file=sys.stderr)
        return 2
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    image = read(path)
    binary, grey = BINARY, GREY
    if arguments.tiny:
        tiny = {"window": (1, 1), "hidden_features": 4, "crop": 8, "batch": 2, "steps": 3, "size": 12}
        binary, grey = (Recipe(**{**vars(recipe), **tiny}) for recipe in (BINARY, GREY))
    if arguments.only != "grey":
        small = shrink(image, binary.shrink)
        bits = (flatten_light(small, 12) > 0).long()
        print(texture("binary", bits, heads.Bernoulli(), binary, arguments.seed, arguments.out))
    if arguments.only != "binary":
        small = shrink(image, grey.shrink)
        span = small.max() - small.min()
        levels = ((small - small.min()) / span * 255).round().long()
        head = heads.LogisticMixture(COMPONENTS, levels=256)
        print(texture("grey", levels, head, grey, arguments.seed, arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
