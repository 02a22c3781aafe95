"""One, two and four ranks, or microbatches, give the same training: losses, weights and metrics agree."""

import math
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from leyden.config.compose import compose, override
from leyden.config.composition import Composition
from leyden.distributed import ranks
from leyden.figures import mosaics
from leyden.launch.start import start as start_run
from leyden.metrics.meters import Meters
from leyden.models import model as models
from leyden.models.model import Model
from leyden.run.directory import Run
from support.processes import forked
from support.training import at_step, measured

WORDS = ["the", "cat", "saw", "another", "dog", "and", "then", "ran", "into", "wood"]
IMAGES = "data=digits data.limit=48 data.batch_size=24 data.eval_batch_size=40"
CONVNET = "model=convnet model.net.width=3 model.net.input_size=16"
TEXT = "data=text data.path=text.txt data.window=7 data.batch_size=8 data.eval_streams=4 data.limit=32"
LSTM = f"model=lstm_lm model.net.embedding_dim=6 model.net.hidden_size=12 {TEXT}"
SERIES = (
    "data=series data.path=series.csv data.targets=[a,b] data.num_targets=2 data.num_features=2 "
    "data.past=6 data.horizon=3 data.season=4 data.gaps=interpolate data.batch_size=16"
)
PAIRS = (
    "data=pairs data.train=pairs.tsv data.val_size=9 data.test_size=11 data.batch_size=12 data.eval_batch_size=4 "
    "data.source_vocab_size=270 data.target_vocab_size=270 data.min_frequency=1 data.max_length=40 model.beam_size=2"
)
MLP_GAN = "model=gan model.generator.hidden=[16,16] model.discriminator.hidden=[16,16] model.r1=0.1 model.ema=0.9"
TRANSFORMER = "model=transformer_lm model.net.hidden_size=16 model.net.mlp_size=24 model.net.context=7"
ARCHITECTURES = {
    "convnet": f"{CONVNET} {IMAGES}",
    "resnet": f"model=small_resnet model.net.width=[4,6] +trainer.sync_batchnorm=true {IMAGES}",
    "rnn": f"model=rnn_lm model.net.hidden_size=12 optimizer.lr=0.05 {TEXT}",
    "lstm, carried": LSTM,
    "lstm": f"{LSTM} data.carry=false",
    "transformer": f"{TRANSFORMER} {TEXT} data.carry=false",
    "seq2seq": f"model=seq2seq model.net.embedding_dim=8 model.net.hidden_size=8 model.net.dropout=0 {PAIRS}",
    "forecaster": f"model=gru_forecaster model.net.hidden_size=6 {SERIES}",
    "sequence classifier": "model=gru_classifier model.net.hidden_size=6 data=japanese_vowels",
    "gan": f"{MLP_GAN} feature=digits_cnn model.num_samples=102 {IMAGES}",
    "dcgan": (
        "model=dcgan model.generator.width=4 model.discriminator.width=4 model.r1=0.1 "
        f"+trainer.sync_batchnorm=true {IMAGES}"
    ),
}
WHOLE = ("resnet", "rnn", "lstm, carried", "dcgan")  # a state is carried, or batch norms would see a part alone
# Sums in another order differ by about 1e-15 in float64, and SGD makes of that no more than its rate allows; in float32
# an activation at the edge of a ReLU may fall on its other side. What is logged is added up in float32.
PLAIN = "precision=64 trainer.max_epochs=2 timeout=60 optimizer=sgd schedule=constant optimizer.lr=0.1"
SHORT = f"{PLAIN} +trainer.limit_train_batches=3 trainer.log_every_n_steps=1"
DDP = "trainer.strategy=ddp"
ROUNDING, LOGGED = {"rtol": 0, "atol": 1e-10}, {"rel": 1e-5, "abs": 2e-6}


@pytest.fixture
def files(workdir: Path) -> Path:
    """A text, series with gaps, and pairs of sentences that are far from equal in length."""
    rng = np.random.default_rng(0)
    (workdir / "text.txt").write_text(" ".join(rng.choice(WORDS, 400)))
    rows = ["time,a,b"]
    for hour, (a, b) in enumerate(rng.standard_normal((200, 2)).cumsum(0)):
        rows.append(f"{hour},{a if hour % 7 else ''},{b if hour >= 60 or hour % 3 == 0 else ''}")
    (workdir / "series.csv").write_text("\n".join(rows))
    sentences = [" ".join(rng.choice(WORDS, 1 + i % 5)) for i in range(80)]
    (workdir / "pairs.tsv").write_text("".join(f"{s}\t{s[::-1]}\n" for s in sentences))
    return workdir


def train(composition: Composition, name: str, *machine: str) -> Run:
    """Train in a forked child, and ranks that are forked from it; nothing is drawn."""
    run = Run.create(composition, Path("runs") / name)
    assert forked(start, run, override(composition.raw, list(machine)).config) == 0
    return run


def start(run: Run, settings: dict, killed_at: int | None = None) -> None:
    os.environ["LEYDEN_DATA"] = str(run.path / "data")  # what is prepared once is prepared by so many ranks
    models.Model.log_figure = models.Model.log_image = lambda model, name, draw: show(run, model, name, draw)
    mosaics.mosaic = lambda images, columns, captions, inks: "\n".join(captions)
    if killed_at:
        at_step(killed_at, lambda: os.kill(os.getpid(), signal.SIGKILL))
    start_run(run, settings)


def show(run: Run, model: Model, name: str, draw: Callable) -> None:
    """Keep what is written beside pictures instead of drawing them."""
    if name == "test/predictions" and model.trainer.is_global_zero:
        run.path.joinpath("samples").mkdir(exist_ok=True)
        run.path.joinpath("samples", "predictions.txt").write_text(re.sub(r" \(.*", "", draw()))


def weights(run: Run, before: int = 0) -> torch.Tensor:
    """All weights, of the last checkpoint or of one `before`."""
    state = torch.load(run.checkpoints()[before], weights_only=True)["state_dict"]
    return torch.cat([x.flatten().double() for x in state.values() if x.is_floating_point()])


def logged(run: Run) -> dict[str, float]:
    """Every value by its step and name, and the metrics of the test."""
    values = {f"{row['step']} {name}": value for row in measured(run) for name, value in row.items()}
    return values | run.status["metrics"]


def texts(run: Run) -> dict[str, str]:
    """Translations, and what was written beside the first pictures."""
    return {str(path.relative_to(run.path)): path.read_text() for path in run.path.glob("samples/**/*.txt")}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ranks_and_parts_train_what_one_process_trains(files: Path, architecture: str):
    composition = compose(f"{SHORT} {ARCHITECTURES[architecture]}".split())
    alone = train(composition, "alone")
    parts = [] if architecture in WHOLE else ["accumulate=3"]
    others = [
        train(composition, "two", "trainer.devices=2", DDP, *parts),
        train(composition, "four", "trainer.devices=4", DDP),
    ]
    assert (weights(alone) - weights(alone, before=1)).abs().max() > 5e-3
    for run in others:
        torch.testing.assert_close(weights(run), weights(alone), **ROUNDING)
        assert logged(run) == pytest.approx(logged(alone), **LOGGED)
        assert texts(run) == texts(alone)


CUT = "trainer.max_epochs=2 trainer.log_every_n_steps=4 +checkpoint.every_n_steps=5 timeout=60"
RANDOM = {
    "convnet": (
        f"{CONVNET} {IMAGES} data.limit=80 data.batch_size=8 data.crop=1 data.flip=true data.mixup=0.2 "
        "+model.net.dropout=0.3 callbacks=ema callbacks.ema.decay=0.9"
    ),
    "lstm, carried": f"{LSTM} +model.net.input_dropout=0.2",
}


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "count"), [("convnet", 4), ("lstm, carried", 2)])
def test_ranks_that_are_killed_end_as_if_they_had_not_been(files: Path, architecture: str, count: int):
    machine = [f"trainer.devices={count}", DDP]
    composition = compose(f"{CUT} {RANDOM[architecture]}".split())
    whole = train(composition, "whole", *machine)
    killed = Run.create(composition, Path("runs") / "killed")
    settings = override(composition.raw, machine).config
    assert forked(start, killed, settings, 7) != 0  # the last checkpoint is of step 5, in the middle of an interval
    assert killed.checkpoints()[0].name == "step-000000005.ckpt"
    assert forked(start, killed, settings) == 0
    assert torch.equal(weights(killed), weights(whole))
    assert logged(killed) == logged(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "last"), [("convnet", ["accumulate=3"]), ("lstm, carried", [])])
def test_a_run_goes_on_with_other_numbers_of_ranks_and_parts(files: Path, architecture: str, last: list[str]):
    cut = "data.limit=null +trainer.limit_train_batches=9 trainer.log_every_n_steps=4 +checkpoint.every_n_steps=5"
    composition = compose(f"{PLAIN} {ARCHITECTURES[architecture]} {cut}".split())
    alone = train(composition, "alone")
    moved = Run.create(composition, Path("runs") / "moved")
    for machine, until in ((["trainer.devices=2", DDP], 6), (["trainer.devices=4", DDP], 12), (last, None)):
        settings = override(composition.raw, machine).config
        assert (forked(start, moved, settings, until) == 0) == (until is None)
    torch.testing.assert_close(weights(moved), weights(alone), **ROUNDING)
    assert logged(moved) == pytest.approx(logged(alone), **LOGGED)


@pytest.mark.slow
def test_a_loss_that_is_no_number_on_one_rank_stops_all(files: Path):
    composition = compose(f"{SHORT} {ARCHITECTURES['convnet']}".split())
    run = Run.create(composition, Path("runs") / "nan")

    def diverge() -> None:
        add = Meters.add
        Meters.add = lambda self, name, *value: add(self, name, *(value if ranks.rank() == 0 else (math.nan,)))
        start(run, override(composition.raw, ["trainer.devices=2", DDP]).config)

    assert forked(diverge) == 1
    assert run.status["state"] == "failed"
    for rank in range(2):  # neither is the one that lost the other
        assert "train/loss is nan at step 1" in (run.path / "ranks" / f"{rank}.error.json").read_text()
