"""python -m bench.textures: learns a texture from one image and draws larger pieces of it, pixel by pixel.

Four OffsetNADEs, trained on random crops: of the image in black and white, which draws 512 x 512 pixels; of its grey
levels, a mixture of logistic distributions, which draws 256 x 256; of the grey levels with three hidden layers, which
draws as many; and of a colour photograph, which draws 512 x 512. Writes a picture of each, with the seconds taken,
beside the image that it learnt from. With --hold-out a model learns from the upper three quarters of its image, and is
measured on the rest, beside PNG.
"""

import argparse
import io
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.image import imread, imsave
from torch import Tensor

from ar_fast import heads
from ar_fast._progress import progress_bar
from ar_fast.models import OffsetNADE


@dataclass(frozen=True)
class Recipe:
    """shrink: the image is averaged over squares of as many pixels; shifts: crops are of every way to cut the image
    into such squares. window, hidden_features, activation: of the model; components: of its mixtures; crop, batch: what
    a step of Adam sees; the learning rate falls to zero with a cosine. size, temperature: of the picture."""

    shrink: int
    window: tuple[int, int]
    hidden_features: int | tuple[int, ...]
    crop: int
    batch: int
    steps: int
    learning_rate: float
    size: int
    temperature: float
    activation: str = "sigmoid"
    components: int = 5
    shifts: bool = False


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
# More units or a wider window learn one small image by heart.
DEEP = replace(GREY, window=(6, 6), hidden_features=(48, 32, 32), activation="relu", temperature=1.0, shifts=True)
PHOTO = Recipe(
    shrink=1,
    window=(6, 6),
    hidden_features=(96, 64, 64),
    crop=32,
    batch=8,
    steps=4000,
    learning_rate=2e-3,
    size=512,
    temperature=1.0,
    activation="relu",
    components=10,
)
# One layer, of as many parameters.
SHALLOW = replace(DEEP, hidden_features=64, activation="sigmoid")
RECIPES = {"binary": BINARY, "grey": GREY, "deep": DEEP, "photo": PHOTO, "shallow": SHALLOW}


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


def binary(image: Tensor) -> Tensor:
    """(H, W) of 0 and 1."""
    return (flatten_light(image, 12) > 0).long()


def levels(image: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """The grey levels, stretched from lowest ... highest to 0 ... 255."""
    return ((image - lowest) / (highest - lowest) * 255).round().clamp(0, 255).long()


def colours(path: Path) -> Tensor:
    """(3, H, W) in 0 ... 255."""
    pixels = torch.from_numpy(imread(path).copy()).float()[..., :3]
    return (pixels * 255 if pixels.max() <= 1 else pixels).round().long().permute(2, 0, 1)


def learnt(name: str, path: Path, recipe: Recipe) -> tuple[list[Tensor], heads.Head]:
    """The images that a recipe learns from, the one itself and then those that are shifted; and its head."""
    if name == "photo":
        return [colours(path)], heads.LogisticMixture(recipe.components, levels=256)
    large = read(path)
    small = shrink(large, recipe.shrink)
    if name == "binary":
        return [binary(small)], heads.Bernoulli()
    span = small.min(), small.max()
    starts = range(recipe.shrink if recipe.shifts else 1)
    images = [levels(shrink(large[r:, c:], recipe.shrink), *span) for r in starts for c in starts]
    return images, heads.LogisticMixture(recipe.components, levels=256)


def untrained(image: Tensor, head: heads.Head, recipe: Recipe) -> OffsetNADE:
    """It draws the image's mean of each channel."""
    shape = (*image.shape[:-2], recipe.crop, recipe.crop)
    model = OffsetNADE(shape, recipe.hidden_features, recipe.window, recipe.activation, head=head)
    model.initialize_from_mean(image.float().mean((-2, -1), keepdim=True).expand(shape))
    return model


def png_bits(image: Tensor) -> float:
    """Bits per value of an image as a PNG."""
    from PIL import Image

    file, values = io.BytesIO(), image.to(torch.uint8)
    Image.fromarray((values.permute(1, 2, 0) if values.dim() == 3 else values).numpy()).save(file, "PNG", optimize=True)
    return 8 * len(file.getvalue()) / values.numel()


def train(model: OffsetNADE, images: list[Tensor], recipe: Recipe, seed: int) -> tuple[float, float]:
    """Nats per value over the last tenth of the steps, and the seconds taken. A step sees crops of one image."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    start, losses = time.perf_counter(), []
    for _ in progress_bar(range(recipe.steps), unit="step", desc="training"):
        image = images[int(torch.randint(len(images), (), generator=generator))] if len(images) > 1 else images[0]
        rows = torch.randint(image.shape[-2] - recipe.crop + 1, (recipe.batch,), generator=generator).tolist()
        columns = torch.randint(image.shape[-1] - recipe.crop + 1, (recipe.batch,), generator=generator).tolist()
        crops = [image[..., r : r + recipe.crop, c : c + recipe.crop] for r, c in zip(rows, columns, strict=True)]
        optimizer.zero_grad()
        loss = -model.log_prob(torch.stack(crops)).mean() / model.variables
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    last = losses[-max(1, recipe.steps // 10) :]
    return sum(last) / len(last), time.perf_counter() - start


def texture(name: str, path: Path, recipe: Recipe, seed: int, hold_out: bool, out: Path) -> str:
    """Trains, draws and writes one texture; returns the line to print."""
    torch.manual_seed(seed)
    images, head = learnt(name, path, recipe)
    image, seen = images[0], images[0].shape[-2]
    if hold_out:
        # A square of a shifted image begins below that of the image itself.
        seen = seen * 3 // 4
        images = [image[..., :seen, :], *(shifted[..., : seen - 1, :] for shifted in images[1:])]
    model = untrained(images[0], head, recipe)
    nats, trained = train(model, images, recipe, seed)
    size = (*image.shape[:-2], recipe.size, recipe.size)
    start = time.perf_counter()
    sample = model.resized(size).sample(seed=seed, temperature=recipe.temperature)
    drawn = time.perf_counter() - start
    top = 1 if isinstance(head, heads.Bernoulli) else head.levels - 1
    for kind, pixels in (("image", image), ("sample", sample)):
        shades = pixels.permute(1, 2, 0).numpy() / top if pixels.dim() == 3 else pixels.numpy()
        options = {"cmap": "gray", "vmin": 0, "vmax": top, "pil_kwargs": {"optimize": True}}
        imsave(out / f"texture-{name}-{kind}.png", shades, **options)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    line = (
        f"{name}: {recipe.size} x {recipe.size}, window {recipe.window}, H = {recipe.hidden_features}, {parameters} "
        f"parameters, {nats:.3f} nats per value; {trained:.1f} s of training, {drawn:.2f} s of drawing"
    )
    if not hold_out:
        return line
    rest = image[..., seen:, :]
    with torch.no_grad():
        held_out = -float(model.resized(rest.shape).log_prob(rest)) / rest.numel()
    return (
        f"{line}; the {rest.shape[-2]} rows held out: {held_out:.3f} nats, {held_out / math.log(2):.3f} bits, as a PNG "
        f"{png_bits(rest * (255 // top)):.3f} bits"
    )


def _default_image(name: str = "brick.png") -> Path | None:
    try:
        import skimage
    except ImportError:
        return None
    path = Path(skimage.__file__).parent / "data" / name
    return path if path.is_file() else None


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.textures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="an image (default: scikit-image's brick.png, where it is installed)")
    parser.add_argument("--photo", type=Path, help="a colour image (default: scikit-image's astronaut.png)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the crops and the pictures (default: 0)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=RECIPES,
        default=["binary", "grey", "deep", "photo"],
        help="some of them; shallow is deep with one layer",
    )
    parser.add_argument("--hold-out", action="store_true", help="learn from the upper three quarters only")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: shows that all runs")
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the pictures go (default: out)")
    arguments = parser.parse_args(given)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        if name == "photo":
            option, path = "--photo", arguments.photo or _default_image("astronaut.png")
        else:
            option, path = "--data", arguments.data or _default_image()
        if path is None or not path.is_file():
            print(f"bench.textures: {option} must be an image, got {path}", file=sys.stderr)
            return 2
        recipe = RECIPES[name]
        if arguments.tiny:
            layers = 4 if isinstance(recipe.hidden_features, int) else (4, 3)
            tiny = {"window": (1, 1), "hidden_features": layers, "crop": 8, "batch": 2, "steps": 3, "size": 12}
            recipe = replace(recipe, **tiny)
        print(texture(name, path, recipe, arguments.seed, arguments.hold_out, arguments.out), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
