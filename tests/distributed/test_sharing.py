"""Ranks and microbatches share a batch: each share has its weight in the mean, and files are prepared once."""

import copy
import hashlib
import json
import math
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from leyden.batch import SeriesBatch, TextBatch, split_microbatches
from leyden.config.compose import compose
from leyden.data.download import Remote
from leyden.data.images.digits import Digits
from leyden.data.indexed import OrderedLoader, ShuffledLoader
from leyden.data.series.windows import WindowStore
from leyden.data.text import token_files
from leyden.data.text.corpora import Corpus
from leyden.data.text.pair_loader import BucketLoader, PaddedTokens, PairStore
from leyden.errors import UserError
from leyden.evaluation import features
from leyden.metrics.meters import FOLD, Meters
from leyden.run.find import list_runs
from leyden.training import loop
from support.processes import cli

pytestmark = pytest.mark.usefixtures("undrawn")

# Batches in parts


def test_a_batch_is_cut_by_rows_and_what_has_none_goes_with_every_part():
    rows = torch.arange(7.0)
    batch = SeriesBatch(rows[:, None], rows, rows, rows, torch.ones(1, 7), rows, 2.5)
    parts = split_microbatches(batch, 3)
    assert [share for _, share in parts] == [2 / 7, 2 / 7, 3 / 7]
    assert torch.cat([part.past for part, _ in parts]).tolist() == batch.past.tolist()
    assert all(part.naive_error is batch.naive_error and part.targets_per_row == 2.5 for part, _ in parts)
    assert all(isinstance(part, SeriesBatch) for part, _ in parts)
    assert split_microbatches(batch, 1) == [(batch, 1.0)]
    assert len(split_microbatches(batch, 100)) == 7
    ((first, _), (second, _)) = split_microbatches({"x": [rows, None], "scale": torch.tensor(3.0)}, 2)
    assert first["x"][0].tolist() == [0, 1, 2]
    assert first["x"][1] is None
    assert second["scale"] == 3
    text = TextBatch(torch.zeros(4, 3), torch.zeros(4, 3), False, 1.5, 3.0)
    assert [part[2:] for part, _ in split_microbatches(text, 2)] == [(False, 1.5, 3.0)] * 2


@pytest.mark.parametrize(
    ("batch", "line"),
    [
        ((torch.zeros(4, 2), torch.zeros(3)), r"accumulate=2: a batch holds tensors of 3 and 4 rows"),
        ([torch.zeros(4), ["a", "b", "c", "d"]], r"accumulate=2: a batch holds a str"),
        (torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)]), r"3 and 5 rows"),
    ],
)
def test_what_cannot_be_cut_is_refused(batch: object, line: str):
    with pytest.raises(UserError, match=line):
        split_microbatches(batch, 2)


class Foreign(LightningModule):
    """Knows nothing of leyden."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(8, 1)
        self.sizes, self.losses = [], []

    def training_step(self, batch, batch_idx):
        self.sizes.append(len(batch[0]))
        return {"loss": (self.net(batch[0]) ** 2).mean()}

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12), "interval": "step"}
        ]


@pytest.mark.filterwarnings("ignore")
def test_parts_of_any_loaders_batches_add_up_to_the_whole():
    def fit(accumulate: int) -> tuple[Foreign, Trainer]:
        model = Foreign()
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(accelerator="cpu", max_epochs=4, gradient_clip_val=1.0, enable_model_summary=False, **quiet)
        loop.install(trainer, 0, accumulate)
        data = TensorDataset(torch.randn(26, 8, generator=torch.Generator().manual_seed(1)))
        trainer.fit(model, DataLoader(data, 12))
        return model, trainer

    (whole, of_whole), (parted, of_parts) = fit(1), fit(5)
    assert parted.sizes[:12] == [2, 2, 3, 2, 3] * 2 + [1, 1]  # a last batch of 2
    assert of_parts.global_step == of_whole.global_step == 12
    assert parted.losses == pytest.approx(whole.losses, rel=1e-6)
    torch.testing.assert_close(parted.net.weight, whole.net.weight, rtol=0, atol=1e-7)
    assert (whole.net.weight - Foreign().net.weight).abs().max() > 0.1


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["data.batch_size=64", "accelerator=cpu_ddp", "trainer.devices=3"],
            "data.batch_size=64 does not divide by the 3 ranks; the nearest is 63 or 66",
        ),
        (["data.eval_batch_size=1", "accelerator=cpu_ddp"], "data.eval_batch_size=1 does not .*; the nearest is 2 "),
        (
            ["data=pydocs", "model=lstm_lm", "data.eval_streams=9", "accelerator=cpu_ddp"],
            "data.eval_streams=9 does not",
        ),
        (["data.batch_size=8", "accelerator=cpu_ddp", "accumulate=5"], "accumulate=5 is more than the 4 samples"),
        (["+trainer.accumulate_grad_batches=2"], "accumulate_grad_batches=2: write accumulate=2"),
    ],
)
def test_what_cannot_be_shared_is_refused_before_torch_is_imported(workdir: Path, overrides: list[str], line: str):
    with pytest.raises(UserError, match=line):
        compose(overrides)


def test_rows_that_carry_a_state_are_not_cut(workdir: Path, capfd: pytest.CaptureFixture):
    assert cli("train", "data=pydocs", "model=lstm_lm", "accumulate=2") == 2
    assert "accumulate=2: rows that carry a state on to the next batch cannot be split" in capfd.readouterr().err
    assert list_runs() == []


# Targets of unequal number


def pair_loaders(world_size: int) -> list:
    rng = np.random.default_rng(0)
    lengths = [rng.integers(2, 12, 40) for _ in range(2)]
    take = PairStore(*(PaddedTokens(np.ones((40, 11), np.int32), length) for length in lengths), torch.device("cpu"))
    ranks = [{"rank": rank, "world_size": world_size} for rank in range(world_size)]
    return [
        [BucketLoader(take, *lengths, batch_size=12, **rank) for rank in ranks],
        [OrderedLoader(take, 40, batch_size=12, **rank) for rank in ranks],
    ]


def series_loaders(world_size: int) -> list:
    rng = np.random.default_rng(0)
    known = rng.random((60, 3)) < 0.4
    store = WindowStore(rng.random((60, 3)), known, np.ones(2), past=4, horizon=3, season=2, masked=True)
    ranks = [{"rank": rank, "world_size": world_size} for rank in range(world_size)]
    return [[ShuffledLoader(lambda i, rows: store.windows(i + 4, rows), 50, batch_size=12, **rank) for rank in ranks]]


def targets(batch: object) -> int:
    return int(batch.observed.sum() if isinstance(batch, SeriesBatch) else (batch.target_length - 1).sum())


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("loaders", [pair_loaders, series_loaders])
def test_every_piece_knows_the_mean_number_of_targets_of_the_whole(loaders: Callable, world_size: int):
    for ranks in loaders(world_size):
        seen = set()
        for batches in zip(*ranks, strict=True):
            pieces = [part for batch in batches for part, _ in split_microbatches(batch, 2)]
            [targets_per_row] = {piece.targets_per_row for piece in pieces}
            rows = sum(len(piece[0]) for piece in pieces)
            assert rows * targets_per_row == pytest.approx(sum(map(targets, pieces)))
            seen |= {targets(piece) / len(piece[0]) for piece in pieces}
        assert len(seen) > 2  # they do differ


# Meters


def test_means_are_over_the_values_of_all_processes():
    ours, theirs = Meters(), Meters()
    ours.add("train/loss", torch.tensor(1.0), 2)
    ours.add("train/loss", 4.0, 1)
    ours.add("train/norm", torch.tensor(8.0))
    theirs.add("train/loss", torch.tensor(10.0), 3)
    theirs.add("train/wins", 0.5)
    both: list = []
    for meters in (ours, theirs):
        meters.state_dict(lambda mine: [both.append(copy.deepcopy(mine)) or mine])
    for meters in (ours, theirs):
        assert meters.interval(lambda mine: both) == {"train/loss": 6, "train/norm": 8, "train/wins": 0.5}
        assert meters.epoch() == {"train/loss": 6, "train/norm": 8, "train/wins": 0.5}
        assert meters.interval() == {}


@pytest.mark.parametrize("stop", [1, FOLD - 1, FOLD, FOLD + 7, 3 * FOLD])
def test_an_interval_that_is_cut_has_the_same_mean_to_the_last_bit(stop: int):
    values = torch.randn(3 * FOLD + 5, generator=torch.Generator().manual_seed(0)).exp()
    whole, before, after = Meters(), Meters(), Meters()
    for i, value in enumerate(values):
        whole.add("train/loss", value, 1 + i % 3)
        (before if i < stop else after).add("train/loss", value, 1 + i % 3)
        if i == stop - 1:
            after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert max(map(len, whole._values.values())) < FOLD + 3
    assert after.interval() == whole.interval()


@pytest.mark.parametrize("steps", [1, FOLD, FOLD + 3])
def test_the_share_of_hits_is_over_the_samples_also_when_an_interval_is_cut(steps: int):
    before, after = Meters(), Meters()
    for _ in range(steps):
        before.add_hits("train/accuracy", torch.tensor([True, True, False, True]))
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    after.add_hits("train/accuracy", torch.tensor([False]))
    assert after.names == ["train/accuracy"]
    assert after.interval() == after.epoch() == {"train/accuracy": 3 * steps / (4 * steps + 1)}


def test_only_the_first_process_goes_on_with_an_interval():
    before, after = Meters(), Meters()
    before.add("train/loss", 2.0)
    before.interval()
    before.add("train/loss", 5.0)
    after.load_state_dict(before.state_dict(), first=False)
    assert after.interval() == {}
    assert after.epoch() == {"train/loss": 2.0}


def test_infinities_of_either_sign_have_no_mean():
    meters = Meters()
    meters.add("train/loss", torch.tensor(math.inf))
    meters.add("train/loss", torch.tensor(-math.inf))
    assert math.isnan(meters.interval()["train/loss"])


# Prepared once


def at_once(count: int, function: Callable[[], object]) -> list:
    """Call a function in so many forked processes at the same time; return what each did."""
    context = multiprocessing.get_context("fork")
    gate, found = context.Barrier(count), context.SimpleQueue()

    def work() -> None:
        gate.wait()
        found.put(function())

    children = [context.Process(target=work) for _ in range(count)]
    for child in children:
        child.start()
    results = [found.get() for _ in children]
    for child in children:
        child.join()
    return results


def counted(path: Path, function: Callable) -> Callable:
    def call(*args: object) -> object:
        with path.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return function(*args)

    return call


def test_four_at_once_download_and_tokenise_once(file_server, workdir: Path, monkeypatch: pytest.MonkeyPatch):
    url, handler = file_server
    content = b"nothing in it, but often. " * 4000
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"

    class Tale(Corpus):
        folder = "tale"
        remotes = (Remote("tale.txt", digest, (f"{url}/plain/tale.txt",)),)

        def read(self) -> dict[str, str]:
            text = self._downloads.read(self.remotes[0]).decode()
            return {"train": text[:90_000], "val": text[90_000:]}

    handler.files["tale.txt"] = content
    monkeypatch.setenv("LEYDEN_DATA", str(workdir))
    monkeypatch.setattr(token_files, "_write", counted(workdir / "made", token_files._write))

    def prepare() -> dict:
        data = Tale(vocab_size=256)
        data.prepare_data()
        data.setup()
        return data.fingerprint()

    first, *others = at_once(4, prepare)
    assert all(print == first for print in others)
    assert first["train"]["size"] == 90_000
    assert handler.requests == [("/plain/tale.txt", None)]
    assert len((workdir / "made").read_text().splitlines()) == 1


def test_four_at_once_measure_the_real_pictures_once(workdir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LEYDEN_DATA", str(workdir))
    monkeypatch.setattr(features, "summarize", counted(workdir / "made", features.summarize))
    feature = features.ClassifierFeatures("conf/feature/digits_cnn.ckpt", name="digits_cnn")
    images = torch.rand(64, 1, 8, 8)
    found = at_once(4, lambda: feature.reference([images], "these", 20).mean.sum().item())
    assert len(set(found)) == 1
    assert len((workdir / "made").read_text().splitlines()) == 1


def test_every_rank_sees_all_examples():
    data = Digits(num_classes=10, image_shape=(1, 8, 8), batch_size=64)
    data.setup()
    data.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")), global_rank=1, world_size=2
    )
    assert sum(len(batch.image) for batch in data.examples("test")) == 359
    assert sum(len(batch.image) for batch in data.test_dataloader()) in (179, 180)
