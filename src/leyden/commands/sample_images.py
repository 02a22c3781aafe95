"""`leyden sample` of a model of pictures: it writes a grid of them, or arrays."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from leyden.config.locations import relative_to_cwd
from leyden.console import put
from leyden.errors import UserError, nearest
from leyden.files import write_atomically
from leyden.run.directory import Run

OPTIONS = ("out", "npz", "class")
FORMATS = {".png": "png", ".gif": "gif", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}  # of a grid, by suffix
MOST_COLUMNS = 20  # of a grid with one column for each class


def check(run: Run, options: dict[str, Any]) -> None:
    """Refuse files that cannot be written, and a class where there is none, before the model is loaded."""
    for option, suffixes in (("out", [*FORMATS]), ("npz", [".npz"])):
        if option in options:
            _check_file(f"--{option}={options[option]}", Path(options[option]), suffixes)
    if "class" in options and run.config["model"].get("num_classes", ...) is None:
        raise _unconditional(run, options["class"])


def main(run: Run, checkpoint: Path, model: Any, options: dict[str, Any]) -> None:
    """Make pictures and write them; print where they are."""
    from leyden.evaluation.generate import generate_images  # with torch and matplotlib
    from leyden.figures.mosaics import mosaic

    count, seed = options.get("n", 64), options.get("seed", 0)
    label = _class_index(run, options["class"], model) if "class" in options else None
    images, labels = generate_images(model, count, label, seed)
    if "npz" in options:
        _write(Path(options["npz"]), _arrays(images, labels))
    if "out" in options or "npz" not in options:
        name = f"sample-{checkpoint.stem}-seed-{seed}" + ("" if label is None else f"-class-{label}")
        path = Path(options.get("out", run.path / "samples" / f"{name}.png"))
        path.parent.mkdir(exist_ok=True)
        in_columns = label is None and 1 < (model.num_classes or 0) <= MOST_COLUMNS
        grid = mosaic(images, columns=model.num_classes if in_columns else None)
        _write(path, _picture(grid, FORMATS[path.suffix.lower()]))


def _arrays(images: np.ndarray, labels: np.ndarray | None) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **({"images": images} if labels is None else {"images": images, "labels": labels}))
    return buffer.getvalue()


def _picture(pixels: np.ndarray, kind: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _check_file(option: str, path: Path, suffixes: list[str]) -> None:
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{option}: the name should end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise UserError(f"{option} is a folder")
    if not path.parent.is_dir():
        raise UserError(f"{option}: there is no folder {path.parent}")


def _unconditional(run: Run, name: str) -> UserError:
    return UserError(f"--class={name}: {run.name} was trained without classes (model.num_classes=null)")


def _class_index(run: Run, name: str, model: Any) -> int:
    """Find a class by its name or, where none is called so, by its index."""
    if not model.num_classes:
        raise _unconditional(run, name)
    names = model.classes or []
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < model.num_classes:
        return int(name)
    hint = "" if name.isdecimal() else nearest(name, names)
    raise UserError(f"--class={name}: should be the name of a class, or 0 to {model.num_classes - 1}{hint}")


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, content)
    put(relative_to_cwd(path))
