"""The cost of a prediction: `leyden predict --out` against a bare batched loop over the same files and weights.

A run is trained for a few steps. The pictures are grey PNG files of noise in one folder; the text is a JSONL file of
prose. The loop reads, batches, calls the net and writes one JSON line for each sample, and does nothing else:
no hashes of samples, no schema, no parts that survive a kill. Both run in one process, in alternating order. Figures
are samples per CPU second (user and system, all threads), medians over rounds.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from leyden.cli import main as leyden
from leyden.evaluation.answer_file import predict_to_file
from leyden.evaluation.predict import Predictor
from leyden.run.find import find_run

BATCH = 512
PICTURES = [
    "data=image_folder",
    "model=convnet",
    "data.num_classes=2",
    "data.mean=0.5",
    "data.std=0.5",
]
TEXT = ["data=text", "data.path=train.txt", "model=gru_lm", "model.net.hidden_size=128", "data.window=128"]


def main(arguments: list[str]) -> None:
    """Print a line for each kind of sample."""
    parser = argparse.ArgumentParser(prog="scripts/bench predict", description=__doc__)
    parser.add_argument("--pictures", type=int, default=20_000, help="number of picture files")
    parser.add_argument("--side", type=int, default=28, help="width and height of the pictures")
    parser.add_argument("--megabytes", type=int, default=50, help="size of the text")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for kind, size, prepare, loop in (
            ("pictures", options.pictures, partial(write_pictures, options.side), loop_over_pictures),
            ("text", options.megabytes, write_text, loop_over_text),
        ):
            if size:
                compare(kind, prepare(size), loop, options.rounds)


def compare(kind: str, path: Path, loop: Callable[[Predictor, Path, Path], int], rounds: int) -> None:
    """Time the loop and leyden in turn; print the medians and the ratio."""
    predictor = Predictor(find_run("last"))
    predictor.batch_size = BATCH
    rates: dict[str, list[float]] = {"loop": [], "leyden": []}
    for number in range(rounds):
        methods = {
            "loop": lambda out: loop(predictor, path, out),
            "leyden": lambda out: predict_by_leyden(predictor, path, out),
        }
        for name, method in sorted(methods.items(), reverse=bool(number % 2)):
            out = Path(f"{name}.jsonl")
            out.unlink(missing_ok=True)
            began = time.process_time()
            count = method(out)
            rates[name].append(count / (time.process_time() - began))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = statistics.median(b / a for a, b in zip(rates["loop"], rates["leyden"], strict=True))
    print(f"{kind}: loop {medians['loop']:,.0f}, leyden {medians['leyden']:,.0f} a CPU second, {ratio:.2f} times")


def batches(items: Iterable) -> Iterator[list]:
    """Yield BATCH items at a time."""
    remaining = iter(items)
    while batch := list(islice(remaining, BATCH)):
        yield batch


def predict_by_leyden(predictor: Predictor, path: Path, out: Path) -> int:
    """Predict with leyden; return the number of samples."""
    problems, _ = predict_to_file(predictor, [path], out)
    assert not problems, problems[0]
    with out.open("rb") as file:
        return sum(1 for _ in file)


def write_pictures(side: int, count: int) -> Path:
    """Write the pictures, and train on some of them."""
    rng = np.random.default_rng(0)
    for name in ("a", "b", "all"):
        Path(name).mkdir()
    for number in range(count):
        folder = Path("all" if number >= 64 else "ab"[number % 2])
        Image.fromarray(rng.integers(256, size=(side, side), dtype=np.uint8)).save(folder / f"{number:06}.png")
    Path("train").mkdir()
    for name in ("a", "b"):
        Path(name).rename(Path("train") / name)
    sizes = [f"data.image_shape=[1,{side},{side}]", f"model.net.input_size={max(32, side)}"]
    leyden(["train", *PICTURES, *sizes, "data.train=train", "data.batch_size=16", "trainer.max_epochs=1"])
    return Path("all")


@torch.inference_mode()
def loop_over_pictures(predictor: Predictor, path: Path, out: Path) -> int:
    """Classify the pictures of a folder, as a script would."""
    net, names = predictor.model.net, predictor.schema.answer.names
    paths = sorted(path.iterdir())
    with out.open("w") as file:
        for batch in batches(paths):
            pixels = np.stack([np.asarray(Image.open(name).convert("L")) for name in batch])[:, None]
            image = torch.from_numpy(pixels).float().div_(255).sub_(0.5).div_(0.5)
            probability, label = net(image).softmax(1).max(1)
            for name, row, k in zip(batch, probability.tolist(), label.tolist(), strict=True):
                file.write(json.dumps({"name": str(name), "label": names[k], "probability": row}) + "\n")
    return len(paths)


def write_text(megabytes: int) -> Path:
    """Write a text of lines of 80 to 240 characters, and train on its beginning."""
    from pydoc_data.topics import topics

    words = " ".join(topics.values()).split()
    rng, size = np.random.default_rng(0), 0
    with Path("lines.jsonl").open("w") as file:
        while size < megabytes * 1_000_000:
            first, count = rng.integers(len(words) - 40), rng.integers(12, 36)
            size += file.write(json.dumps({"text": " ".join(words[first : first + count])}) + "\n")
    Path("train.txt").write_text("\n".join(topics.values()))
    leyden(["train", *TEXT, "data.batch_size=32", "data.limit=160", "trainer.max_epochs=1"])
    return Path("lines.jsonl")


@torch.inference_mode()
def loop_over_text(predictor: Predictor, path: Path, out: Path) -> int:
    """Score the lines of a file, in batches of lines as they come, as a script would."""
    net, count = predictor.model.net, 0
    with path.open() as lines, out.open("w") as file:
        for batch in batches(lines):
            texts = [json.loads(line)["text"].encode() for line in batch]
            length = torch.tensor([len(text) for text in texts])
            token = torch.zeros(len(texts), int(length.max()), dtype=torch.long)
            for row, text in zip(token, texts, strict=True):
                row[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
            logits, _ = net(token[:, :-1], None)
            loss = F.cross_entropy(logits.flatten(0, 1), token[:, 1:].flatten(), reduction="none").view(len(texts), -1)
            is_target = torch.arange(loss.shape[1]) < (length - 1)[:, None]
            nats = (loss * is_target).sum(1) / (length - 1)
            for number, value in enumerate(nats.tolist(), count):
                file.write(json.dumps({"name": f"{path}:{number}", "nats_per_token": value}) + "\n")
            count += len(batch)
    return count
