"""Images per CPU-second of the data path: the usual one, ours, and a bare gather as the ceiling."""

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from leyden.data.image_loader import Augmentation, TrainLoader

BATCH_SIZE = 512
SHAPES = {"CIFAR": (3, 32, 32, 4), "Fashion": (1, 28, 28, 2)}  # channels, height, width, crop


class UsualDataset(Dataset):
    """What most projects do: Pillow, random crop and flip, tensor, normalisation; one picture at a time."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, crop: int) -> None:
        self.images, self.labels, self.crop = images, labels, crop  # (N, H, W) or (N, H, W, 3) uint8

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.images[index])
        width, height = picture.size
        left, top = torch.randint(2 * self.crop + 1, (2,)).tolist()
        picture = ImageOps.expand(picture, self.crop).crop((left, top, left + width, top + height))
        if torch.rand(1).item() < 0.5:
            picture = ImageOps.mirror(picture)
        pixels = torch.from_numpy(np.array(picture)).view(height, width, -1).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div(255).sub_(0.5).div_(0.25), int(self.labels[index])


def paths(shape: tuple[int, int, int, int], size: int) -> dict[str, tuple[Callable[[], None], int]]:
    """Return for each data path a function that runs it and the number of images that makes."""
    channels, height, width, crop = shape
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(size, channels, height, width), dtype=np.uint8)
    labels = rng.integers(10, size=size)
    pictures = images[:, 0] if channels == 1 else np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    some = 2 * BATCH_SIZE
    usual = DataLoader(
        UsualDataset(pictures[:some], labels[:some], crop), batch_size=BATCH_SIZE, shuffle=True, num_workers=0
    )

    def loader(augmentation: Augmentation) -> TrainLoader:
        return TrainLoader(
            torch.from_numpy(images),
            torch.from_numpy(labels),
            mean=[0.5],
            std=[0.25],
            num_classes=10,
            batch_size=BATCH_SIZE,
            augmentation=augmentation,
        )

    augmented, plain = loader(Augmentation(crop=crop, flip=True)), loader(Augmentation())
    floats, targets = torch.from_numpy(images).float(), torch.from_numpy(labels)

    def select() -> None:
        for index in torch.randperm(size).split(BATCH_SIZE):
            floats.index_select(0, index)
            targets.index_select(0, index)

    def run(batches: DataLoader | TrainLoader) -> Callable[[], None]:
        def epoch() -> None:
            for _ in batches:
                pass

        return epoch

    whole = len(augmented) * BATCH_SIZE
    return {
        "Pillow per item, crop + flip": (run(usual), some),
        "leyden: crop + flip": (run(augmented), whole),
        "leyden: no augmentation": (run(plain), whole),
        "index_select of float32": (select, size),
    }


def main(argv: list[str]) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="bench data", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds, of which the median counts")
    parser.add_argument("--images", type=int, default=20 * BATCH_SIZE, help="size of the made-up data set")
    options = parser.parse_args(argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    table = Table(title=f"Images per CPU-second, one thread, batch {BATCH_SIZE}, median of {options.rounds} rounds")
    table.add_column("path", no_wrap=True)
    for name in SHAPES:
        table.add_column(name, justify="right")
        table.add_column("ratio", justify="right")
    rows: dict[str, list[str]] = {}
    try:
        for shape in SHAPES.values():
            runs = paths(shape, options.images)
            rates: dict[str, list[float]] = {name: [] for name in runs}
            for round_ in range(options.rounds + 1):
                for name, (function, count) in runs.items():
                    start = time.process_time()
                    function()
                    if round_:  # the first one warms the allocator up
                        rates[name].append(count / (time.process_time() - start))
            base, *_ = (median(rate) for rate in rates.values())
            for name, rate in rates.items():
                rows.setdefault(name, []).extend([f"{median(rate):,.0f}", f"{median(rate) / base:.1f}"])
    finally:
        torch.set_num_threads(threads)
    for name, cells in rows.items():
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
