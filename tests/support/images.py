"""Image data for tests: digits, and folders of small pictures."""

from pathlib import Path

from PIL import Image

from leyden.data.images.digits import Digits
from leyden.data.images.image_folder import ImageFolder


def digits(**options) -> Digits:
    return Digits(**{"num_classes": 10, "image_shape": (1, 8, 8), "batch_size": 64} | options)


def write_pictures(root: Path) -> Path:
    """Write ten pictures of each of two classes, of various sizes and modes, one colour each."""
    for k, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(10):
            mode, suffix = (("RGB", "png"), ("L", "jpg"), ("RGBA", "PNG"))[i % 3]
            colour = {"RGB": (10 * i, 100 * k, 0), "L": 10 * i, "RGBA": (10 * i, 100 * k, 0, 255)}[mode]
            Image.new(mode, (5 + i, 9), colour).save(root / name / f"{i}.{suffix}")
    (root / "cat" / "notes.txt").write_text("not a picture")
    return root


def folder(source: Path, **options) -> ImageFolder:
    return ImageFolder(**{"train": source, "num_classes": 2, "image_shape": (3, 6, 7), "val_size": 2} | options)
