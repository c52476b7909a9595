"""python -m bench.compression: compresses with trained models, beside PNG, zstd and xz, and takes the time.

Digits that the model has not seen, in black and white; the lower halves of photographs in 256 levels, whose upper
halves a model learnt from just before; and a text. The model is not counted: it is there already. All digits are one
PNG, of one bit per pixel. Values per second are those of one call, without the verification.
"""

import argparse
import io
import itertools
import lzma
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ar_fast
from ar_fast import heads
from ar_fast.cli import runs, sources
from ar_fast.models import CharRNN, OffsetNADE

from . import textures

try:
    from compression import zstd  # Python 3.14
except ImportError:
    try:
        import zstandard as zstd
    except ImportError:
        zstd = None

CLOCK: list[Callable[[], float]] = [time.perf_counter]
TUTORIAL = "constriction's tutorial reports 2.06 bits and 1,205 characters per second for its char-RNN"


def timed(call: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """The result, and the median of the seconds."""
    seconds = []
    for _ in range(repeats):
        start = CLOCK[0]()
        result = call()
        seconds.append(CLOCK[0]() - start)
    return result, statistics.median(seconds)


def png(pixels: np.ndarray) -> int:
    """Bytes of (height, width) in uint8, or bool with one bit per pixel."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", optimize=True)
    return file.tell()


def others(raw: bytes) -> dict[str, int]:
    """Bytes by other compressors at their strongest."""
    found = {"xz -9e": len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))}
    if zstd is not None:
        own = zstd.compress(raw, level=22) if hasattr(zstd, "compress") else zstd.ZstdCompressor(level=22).compress(raw)
        found["zstd -22"] = len(own)
    return found


def nats(model: Any, x: Tensor) -> float:
    with torch.no_grad():
        if isinstance(model, CharRNN):
            return model._measure(x, None, None)[0]
        return -sum(model.log_prob(part).double().sum().item() for part in x.split(16))


def row(name: str, model: Any, x: Tensor, rivals: dict[str, int], repeats: int, chunk: int | None = None) -> list[str]:
    data, encode = timed(lambda: ar_fast.compress(model, x, chunk=chunk, verify=False), repeats)
    back, decode = timed(lambda: ar_fast.decompress(model, data), repeats)
    assert torch.equal(back, x)
    count, bits = x.numel(), nats(model, x) / math.log(2)
    bytes_of = {"ar_fast": len(data), **rivals}
    return [
        name,
        f"{count:,}",
        f"{bits / count:.4f}",
        *(f"{8 * bytes_of[rival] / count:.4f}" if rival in bytes_of else "" for rival in RIVALS),
        f"{count / encode:,.0f}",
        f"{count / decode:,.0f}",
    ]


PHOTOGRAPH = textures.Recipe(
    shrink=1,
    window=(3, 3),
    hidden_features=32,
    crop=40,
    batch=8,
    steps=800,
    learning_rate=6e-3,
    size=0,
    temperature=1.0,
)
RIVALS = ("ar_fast", "PNG", "zstd -22", "xz -9e")


def digits(repeats: int) -> Iterator[list[str]]:
    run = runs.open_run("digits-28", "cpu")
    x = runs.encoded(sources.read(run.data), run.values, run.seed)["test"]
    packed = np.packbits(x.numpy().astype(bool))
    sheet = x.reshape(-1, 28).numpy().astype(bool)
    rivals = others(packed.tobytes()) | {"PNG": png(sheet)}
    yield row(f"{len(x)} test digits, NADE H = 120", run.model, x, rivals, repeats)


def photographs(files: Sequence[Path], repeats: int) -> Iterator[list[str]]:
    """A model learns from crops of the upper half, and compresses the lower one."""
    for file in files:
        pixels = sources.read_image(file)
        if pixels.ndim != 2 or min(pixels.shape[0] // 2, pixels.shape[1]) < PHOTOGRAPH.crop:
            raise SystemExit(f"--image: must be grey and of at least {2 * PHOTOGRAPH.crop} pixels, got {file}")
        half, crop = pixels.shape[0] // 2, (PHOTOGRAPH.crop, PHOTOGRAPH.crop)
        seen, rest = torch.from_numpy(pixels[:half].copy()), pixels[half:]
        torch.manual_seed(0)
        head = heads.LogisticMixture(textures.COMPONENTS, levels=256)
        model = OffsetNADE(crop, PHOTOGRAPH.hidden_features, PHOTOGRAPH.window, head=head)
        model.initialize_from_mean(seen.float().mean().expand(crop))
        _, seconds = textures.train(model, seen, PHOTOGRAPH, 0)
        rivals = others(rest.tobytes()) | {"PNG": png(rest)}
        name = f"{file.name}, lower half, {rest.shape[0]} x {rest.shape[1]}, OffsetNADE H = {model.hidden_features}"
        x = torch.from_numpy(rest.copy())[None]
        yield row(f"{name}, {seconds:.0f} s of training", model.resized(rest.shape), x, rivals, repeats)


def texts(repeats: int) -> Iterator[list[str]]:
    run = runs.open_run("help", "cpu")
    text = "".join(topics[name] for name in sorted(topics))
    text = text[-(len(text) // 10) :]
    x = run.model.encode(text.encode())
    name, rivals = "Python's help, its last tenth, GRU H = 192, chunks of", others(text.encode())
    for chunk in (1024, 4096, len(x)):
        yield row(f"{name} {chunk:,}", run.model, x, rivals, repeats, chunk)


def speed(repeats: int) -> list[str]:
    """Characters per second of a GRU of two layers of 512 units with 65 symbols, whose weights do not matter here."""
    model = CharRNN("".join(map(chr, range(65))), 512, num_layers=2)
    x = model.sample(64, 256, seed=0)[0].flatten()
    lines = []
    for chunk in (256, len(x)):
        data, encode = timed(lambda chunk=chunk: ar_fast.compress(model, x, chunk=chunk, verify=False), repeats)
        _, decode = timed(lambda data=data: ar_fast.decompress(model, data), repeats)
        lines.append(
            f"GRU, 2 layers, H = 512, 65 symbols, {-(-len(x) // chunk)} chunks: "
            f"{len(x) / encode:,.0f} characters/s in, {len(x) / decode:,.0f} out"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, action="append", default=[], help="a grey image; may be repeated")
    parser.add_argument("--repeats", type=int, default=3, help="the median of so many is printed")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--cpu-time", action="store_true", help="for a busy machine: seconds of CPU, on one thread")
    given = parser.parse_args(arguments)
    if given.cpu_time:
        CLOCK[0], given.threads = time.process_time, 1
    if given.threads:
        torch.set_num_threads(given.threads)
    info = ar_fast.info()
    clock = "seconds of CPU" if given.cpu_time else "seconds"
    print(f"{info['cpu_isa']}, {info['cpu_threads']} threads, torch {info['torch']}, {clock}\n")
    names = ["data", "values", "-log2 p", *RIVALS, "values/s in", "values/s out"]
    print("| " + " | ".join(names) + " |\n|---|" + "---:|" * (len(names) - 1))
    for cells in itertools.chain(digits(given.repeats), photographs(given.image, given.repeats), texts(given.repeats)):
        print("| " + " | ".join(cells) + " |", flush=True)
    print("\nBits per value, files whole.", *speed(given.repeats), f"{TUTORIAL}.", sep="\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
