"""Images and tokens per CPU-second of data paths: the usual ones, leyden's, and a bare gather as the upper bound."""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from leyden.data.images.augmentation import Augmentation
from leyden.data.images.loader import ImageTrainLoader
from leyden.data.text.loader import StreamLoader, WindowLoader
from leyden.data.text.token_files import Tokens

BATCH_SIZE = 512
ROWS, WINDOW = 64, 128  # rows of a text batch, and tokens of a row
SHAPES = {"CIFAR": (3, 32, 32, 4), "Fashion": (1, 28, 28, 2)}  # channels, height, width, crop


class UsualDataset(Dataset):
    """The usual data set: Pillow, random crop and flip, tensor, normalisation; one picture at a time."""

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
    """Return for each data path a function that runs it, and the number of images per call."""
    channels, height, width, crop = shape
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(size, channels, height, width), dtype=np.uint8)
    labels = rng.integers(10, size=size)
    pictures = images[:, 0] if channels == 1 else np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    subset_size = 2 * BATCH_SIZE
    usual = DataLoader(
        UsualDataset(pictures[:subset_size], labels[:subset_size], crop),
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=0,
    )

    def loader(augmentation: Augmentation) -> ImageTrainLoader:
        return ImageTrainLoader(
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

    def run(batches: DataLoader | ImageTrainLoader) -> Callable[[], None]:
        def epoch() -> None:
            for _ in batches:
                pass

        return epoch

    epoch_size = len(augmented) * BATCH_SIZE
    return {
        "Pillow per item, crop + flip": (run(usual), subset_size),
        "leyden: crop + flip": (run(augmented), epoch_size),
        "leyden: no augmentation": (run(plain), epoch_size),
        "index_select of float32": (select, size),
    }


class Strings(Dataset):
    """A usual text data set: slice the string and look up every character, one window at a time."""

    def __init__(self, text: str) -> None:
        self.text, self.index = text, {character: k for k, character in enumerate(sorted(set(text)))}

    def __len__(self) -> int:
        return len(self.text) // WINDOW - 1

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        start = item * WINDOW
        ids = [self.index[character] for character in self.text[start : start + WINDOW + 1]]
        return torch.tensor(ids[:-1]), torch.tensor(ids[1:])


class Mapped(Dataset):
    """The same windows, from a memory map."""

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids) // WINDOW - 1

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        start = item * WINDOW
        window = torch.from_numpy(self.ids[start : start + WINDOW + 1].astype(np.int64))
        return window[:-1], window[1:]


def text_paths(folder: Path, size: int) -> dict[str, tuple[Callable[[], None], int]]:
    """Return for each way to read a text of `size` characters a function, and the number of tokens per call."""
    characters = np.random.default_rng(0).integers(ord("A"), ord("A") + 26, size=size).astype(np.uint8)
    np.save(folder / "ids.npy", characters - ord("A"))
    ids = np.load(folder / "ids.npy", mmap_mode="c")
    tokens = Tokens(ids, 1.0, "")
    num_tokens = 4 * ROWS * WINDOW  # tokens per call of the slow ways

    def epoch(batches: Any) -> Callable[[], None]:
        def run() -> None:
            for _ in batches:
                pass

        return run

    def usual(dataset: Dataset) -> Callable[[], None]:
        return epoch(DataLoader(dataset, batch_size=ROWS, shuffle=True, drop_last=True))

    def nanogpt() -> None:
        for _ in range(4):
            starts = torch.randint(len(ids) - WINDOW, (ROWS,)).tolist()
            torch.stack([torch.from_numpy(ids[i : i + WINDOW].astype(np.int64)) for i in starts])
            torch.stack([torch.from_numpy(ids[i + 1 : i + 1 + WINDOW].astype(np.int64)) for i in starts])

    windows = WindowLoader(tokens, window=WINDOW, batch_size=ROWS)
    streams = StreamLoader(tokens, window=WINDOW, batch_size=ROWS)
    subset = slice(0, num_tokens + 2 * WINDOW)
    return {
        "strings per item": (usual(Strings(characters[subset].tobytes().decode())), num_tokens),
        "memory map per item": (usual(Mapped(ids[subset])), num_tokens),
        "nanoGPT: stack of slices": (nanogpt, num_tokens),
        "leyden: windows at random": (epoch(windows), len(windows) * ROWS * WINDOW),
        "leyden: streams that carry on": (epoch(streams), len(streams) * ROWS * WINDOW),
    }


def rates(runs: dict[str, tuple[Callable[[], None], int]], rounds: int) -> dict[str, float]:
    """Return the items per CPU-second of each variant, the median of interleaved rounds."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, (function, count) in runs.items():
            start = time.process_time()
            function()
            if number:  # the first round warms up the allocator
                samples[name].append(count / (time.process_time() - start))
    return {name: median(values) for name, values in samples.items()}


def main(argv: list[str]) -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(prog="bench data", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="number of interleaved rounds; the median is reported")
    parser.add_argument("--images", type=int, default=20 * BATCH_SIZE, help="size of the synthetic data set")
    parser.add_argument("--characters", type=int, default=10_000_000, help="size of the synthetic text")
    options = parser.parse_args(argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _report_images(options.images, options.rounds)
        _report_text(options.characters, options.rounds)
    finally:
        torch.set_num_threads(threads)


def _report_images(size: int, rounds: int) -> None:
    table = Table(title=f"Images per CPU-second, one thread, batch {BATCH_SIZE}, median of {rounds} rounds")
    table.add_column("path", no_wrap=True)
    rows: dict[str, list[str]] = {}
    for name, shape in SHAPES.items():
        table.add_column(name, justify="right")
        table.add_column("ratio", justify="right")
        rate_by_path = rates(paths(shape, size), rounds)
        base = next(iter(rate_by_path.values()))
        for path, rate in rate_by_path.items():
            rows.setdefault(path, []).extend([f"{rate:,.0f}", f"{rate / base:.1f}"])
    for path, cells in rows.items():
        table.add_row(path, *cells)
    Console().print(table)


def _report_text(size: int, rounds: int) -> None:
    title = f"Million tokens per CPU-second, one thread, {ROWS} x {WINDOW}, median of {rounds} rounds"
    table = Table("path", title=title)
    table.add_column("tokens", justify="right")
    table.add_column("ratio", justify="right")
    with tempfile.TemporaryDirectory() as folder:
        rate_by_path = rates(text_paths(Path(folder), size), rounds)
    base = next(iter(rate_by_path.values()))
    for path, rate in rate_by_path.items():
        table.add_row(path, f"{rate / 1e6:,.2f}", f"{rate / base:.1f}")
    Console().print(table)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
