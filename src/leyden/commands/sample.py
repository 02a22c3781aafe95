"""`leyden sample RUN`: generate text or pictures with a run's model."""

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leyden.commands.arguments import Arguments, check_output
from leyden.config.locations import relative_to_cwd
from leyden.console import escaped, put
from leyden.distributed.signals import Stop
from leyden.errors import UserError, nearest
from leyden.files import write_atomically
from leyden.run.directory import Run
from leyden.run.find import find_checkpoint, find_run

if TYPE_CHECKING:
    from leyden.contracts import PictureGenerator

SAMPLING_OPTIONS = ("temperature", "top_k", "top_p", "repetition_penalty")
TEXT_OPTIONS = ("prompt", "num_samples", *SAMPLING_OPTIONS)
PICTURE_OPTIONS = ("out", "npz", "class")
MINIMA = {"n": 1, "seed": 0, "num_samples": 1}
# suffixes of pictures, and Pillow's names of the formats
FORMATS = {".png": "png", ".gif": "gif", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
MAX_COLUMNS = 20  # with at most this many classes, a grid has a column for each class


def main(arguments: list[str]) -> int:
    """Print the text, or write the pictures, that the model of a run generates."""
    options = vars(_parser().parse_args(arguments))  # only the options that the user gave
    run, checkpoint_name = find_run(options.pop("run")), options.pop("checkpoint", None)
    find_checkpoint(run, checkpoint_name)
    _check_options(run, options)
    with Stop():
        from leyden.checkpoints.choose import choose  # loads torch, which takes seconds
        from leyden.contracts import PictureGenerator, TextGenerator
        from leyden.evaluation.generate import load_generator

        checkpoint = choose(run, checkpoint_name)
        model, data = load_generator(run, checkpoint)
        if isinstance(model, PictureGenerator):
            _refuse_options(options, TEXT_OPTIONS, f"for language models; {run.name} generates pictures")
            _write_pictures(run, checkpoint, model, options)
        elif isinstance(model, TextGenerator) and getattr(data, "tokenizer", None):
            _refuse_options(options, PICTURE_OPTIONS, f"for models that generate pictures; {run.name} generates text")
            _print_text(model, data, options)
        else:
            parts = (run.config[part] for part in ("model", "data"))
            targets = " on ".join(node["_target_"] for node in parts if node)
            raise UserError(f"{run.name} generates neither text nor pictures: {targets}")
    return 0


def _parser() -> Arguments:
    parser = Arguments("sample", "Generate with a run's model: continue a text, or draw pictures.")
    parser.argument_default = argparse.SUPPRESS
    parser.add_run()
    parser.add_argument(
        "-n", type=int, metavar="N", help="number of tokens (by default 500) or of pictures (by default 64)"
    )
    parser.add_argument("--seed", type=int, help="by default 0")
    parser.add_checkpoint()
    text = parser.add_argument_group("language models")
    text.add_argument("--prompt", help="by default empty: the model begins a line")
    text.add_argument("--temperature", type=float, help="0: always the likeliest token; by default 1")
    text.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    text.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the fewest tokens whose probabilities sum to P"
    )
    text.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1: repeat less")
    text.add_argument("--num-samples", type=int, metavar="N", help="number of texts, generated together; by default 1")
    images = parser.add_argument_group("models that generate pictures")
    images.add_argument("--out", metavar="FILE", type=Path, help="a grid of pictures; by default in the run's samples/")
    images.add_argument(
        "--npz",
        metavar="FILE",
        type=Path,
        help="arrays: images (N, C, H, W) uint8 and, if there are classes, labels (N,)",
    )
    images.add_argument("--class", metavar="CLASS", help="a name or an index; by default all classes in turn")
    return parser


def _check_options(run: Run, options: dict[str, Any]) -> None:
    """Check the options before the model is loaded."""
    for option, minimum in MINIMA.items():
        if options.get(option, minimum) < minimum:
            raise UserError(f"{_flag(option)}={options[option]}: should be {minimum} or more")
    for option, suffixes in (("out", FORMATS), ("npz", (".npz",))):
        if option in options:
            check_output(f"--{option}", options[option], suffixes)
    if "class" in options and run.config["model"].get("num_classes", ...) is None:
        raise _no_classes_error(run, options["class"])
    if sampling := {name: options[name] for name in SAMPLING_OPTIONS if name in options}:
        from leyden.models.text.sampling import Sampling  # loads torch

        try:
            Sampling(**sampling)
        except UserError as error:
            name, _, problem = str(error).partition("=")
            raise UserError(f"{_flag(name)}={problem}") from None


def _refuse_options(options: dict[str, Any], names: tuple[str, ...], reason: str) -> None:
    for option in names:
        if option in options:
            raise UserError(f"{_flag(option)} is {reason}")


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}" if len(option) > 1 else f"-{option}"


def _no_classes_error(run: Run, name: str) -> UserError:
    return UserError(f"--class={name}: {run.name} was trained without classes (model.num_classes=null)")


def _print_text(model: Any, data: Any, options: dict[str, Any]) -> None:
    """Print the prompt and its continuations: the first one token by token while it is generated, then the others."""
    from leyden.evaluation.generate import generate_text

    other_samples: list[list[str]] = []
    for pieces in generate_text(model, data.tokenizer, **options):
        print(escaped(pieces[0]), end="", flush=True)
        other_samples.append(pieces[1:])
    print()
    for number, pieces in enumerate(zip(*other_samples, strict=True), 2):
        put(f"\n--- {number} ---\n{''.join(pieces)}")


def _write_pictures(run: Run, checkpoint: Path, model: "PictureGenerator", options: dict[str, Any]) -> None:
    """Generate pictures and write them as arrays or as a grid; print the paths."""
    from PIL import Image

    from leyden.evaluation.generate import generate_images  # loads torch and matplotlib
    from leyden.figures.mosaics import mosaic

    count, seed = options.get("n", 64), options.get("seed", 0)
    label = _class_index(run, options["class"], model) if "class" in options else None
    images, labels = generate_images(model, count, label, seed)
    if "npz" in options:
        arrays = {"images": images} if labels is None else {"images": images, "labels": labels}
        _write_file(options["npz"], lambda file: np.savez(file, **arrays))
    if "out" in options or "npz" not in options:
        name = f"sample-{checkpoint.stem}-seed-{seed}" + ("" if label is None else f"-class-{label}")
        path = options.get("out", run.path / "samples" / f"{name}.png")
        path.parent.mkdir(exist_ok=True)
        has_class_columns = label is None and 1 < (model.num_classes or 0) <= MAX_COLUMNS
        grid = mosaic(images, columns=model.num_classes if has_class_columns else None)
        _write_file(path, lambda file: Image.fromarray(grid).save(file, FORMATS[path.suffix.lower()]))


def _write_file(path: Path, save: Callable[[io.BytesIO], object]) -> None:
    """Let `save` fill a buffer, write its content to a file atomically, and print the path."""
    content = io.BytesIO()
    save(content)
    write_atomically(path, content.getvalue())
    put(relative_to_cwd(path))


def _class_index(run: Run, name: str, model: "PictureGenerator") -> int:
    """Find a class by its name or, if no class has that name, by its index."""
    if not model.num_classes:
        raise _no_classes_error(run, name)
    names = model.classes or []
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < model.num_classes:
        return int(name)
    hint = "" if name.isdecimal() else nearest(name, names)
    raise UserError(f"--class={name}: should be the name of a class, or 0 to {model.num_classes - 1}{hint}")
