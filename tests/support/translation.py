"""Sentences with translations, and small nets and batches for them."""

import random
from pathlib import Path

import numpy as np
import torch

from leyden.batch import PairBatch
from leyden.data.text.pairs import Pairs
from leyden.nets.seq2seq import Seq2Seq
from leyden.preparation.subwords import PAD

SENTENCES = [
    "a red ball",
    "the dog runs",
    "two men sit on a bench",
    "a girl in a red coat",
    "one dog",
    "a man with a ball",
]
VOCAB = 270


def net(**options) -> Seq2Seq:
    torch.manual_seed(0)
    options = {"embedding_dim": 6, "hidden_size": 8, "dropout": 0.0} | options
    return Seq2Seq(11, 9, **options).double().eval()


def pairs(lengths: list[int], target_lengths: list[int], pad: int = 0, seed: int = 0) -> PairBatch:
    """Return random sentences, padded to `pad` columns more than the longest needs."""
    rng = np.random.default_rng(seed)
    source = torch.full((len(lengths), max(lengths) + pad), PAD)
    target = torch.full((len(lengths), max(target_lengths) + pad), PAD)
    for row, length in zip(source, lengths, strict=True):
        row[:length] = torch.from_numpy(rng.integers(4, 11, length))
    for row, length in zip(target, target_lengths, strict=True):
        row[:length] = torch.from_numpy(rng.integers(4, 9, length))
    mean = sum(target_lengths) / len(target_lengths) - 1
    return PairBatch(source, torch.tensor(lengths), target, torch.tensor(target_lengths), mean)


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def corpus(folder: Path, size: int = 160) -> list[Path]:
    """Write two aligned files: words, and the same words in reverse order and capitals."""
    rng = random.Random(0)
    lines = [" ".join(rng.choices(["ab", "cd", "ef", "gh", "ij"], k=rng.randint(1, 6))) for _ in range(size)]
    translations = [" ".join(reversed(line.split())).upper() for line in lines]
    return [write(folder / "text.a", lines), write(folder / "text.b", translations)]


def phrases(folder: Path, **options) -> Pairs:
    """Return sentences paired with their capitals; validation and test have the same pairs except the last."""
    lines = [f"{line}\t{line.upper()}" for line in SENTENCES]
    train = write(folder / "train", lines)
    test = write(folder / "test", [*lines[:-1], "a man with a ball\tA MAN AND A BALL"])
    sizes = {"source_vocab_size": 300, "target_vocab_size": 300, "min_frequency": 1}  # nearly whole words
    module = pairs_data(train, val=test, test=test, batch_size=6, **sizes, **options)
    module.setup()
    return module


def pairs_data(files: list[Path] | Path, **options) -> Pairs:
    options = {"source_vocab_size": VOCAB, "target_vocab_size": VOCAB, "batch_size": 8} | options
    return Pairs(train=files, **options)


FORMS = [
    {"attention": attention, "input_feeding": feeding, "cell": cell, "num_layers": layers}
    for attention, feeding, cell, layers in (
        ("general", False, "lstm", 2),
        ("general", True, "lstm", 1),
        ("additive", True, "gru", 2),
        ("dot", False, "gru", 1),
        ("none", False, "lstm", 1),
        ("none", True, "gru", 1),
    )
]
