"""A language model carries its state exactly, its scores are exact, and generation does not affect training."""

import json
import math
import os
import shutil
import signal
import socket
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor, nn
from torch.nn import functional as F

from leyden import checkpoints
from leyden.batch import NO_TARGET, TextBatch
from leyden.callbacks.samples import Samples
from leyden.cli import main
from leyden.data.text.loader import StreamLoader, TextEvalLoader
from leyden.data.text.token_files import Tokens
from leyden.errors import UserError
from leyden.evaluation.answers import answer, to_records
from leyden.models.text.language_model import LanguageModel
from leyden.models.text.sampling import Sampling, keep_most_likely, penalise
from leyden.run.directory import Run
from leyden.run.find import list_runs
from leyden.schema.schema import Schema
from leyden.schema.text import Likelihood, Text
from support.processes import cli, forked
from support.training import at_step, equal, measured

V = 11


class Tiny(nn.Module):
    """The least that a net of a language model is."""

    vocab_size = V

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, 6)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(6, 8, batch_first=True)
        self.decoder = nn.Linear(8, V)

    def forward(self, token: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        h0 = None if state is None else state[0].transpose(0, 1).contiguous()
        out, h = self.gru(self.dropout(self.embedding(token)), h0)
        return self.decoder(out), (h.transpose(0, 1),)


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(Tiny(), partial(torch.optim.Adam, lr=0.05))


def schema(carry: bool) -> Schema:
    state = {"kind": "byte", "lowercase": False}
    return Schema(
        input=Text(state=state, window=7, carry=carry, num_tokens=50, chars_per_token=2.0), answer=Likelihood()
    )


def text(size: int, seed: int = 0) -> Tokens:
    return Tokens(np.random.default_rng(seed).integers(V, size=size).astype(np.uint8), 1.5, "")


def trainer(**options) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", devices=1, **quiet, **options)


# Training and evaluation


def test_learns_one_batch_by_heart(model: LanguageModel):
    batch = StreamLoader(text(200), window=10, batch_size=4).batch(0, 0)
    optimizer = model._optimizer(model.parameters())
    for _ in range(250):
        loss = model.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


def test_the_state_is_carried_without_its_gradient_and_reset_at_the_start(model: LanguageModel):
    first, second = list(StreamLoader(text(200), window=10, batch_size=4))[:2]
    logits, state = model.net(first.token)
    expected = F.cross_entropy(model.net(second.token, state)[0].flatten(0, 1), second.target.flatten())
    model.training_step(first, 0)
    carried = model.training_step(second, 1)
    assert carried == expected
    assert not any(part.requires_grad for part in model._state)
    fresh = F.cross_entropy(logits.flatten(0, 1), first.target.flatten())
    assert model.training_step(first, 2) == fresh != model.training_step(first._replace(carry=True), 3)


def test_the_kept_state_holds_no_more_than_itself(model: LanguageModel):
    model.net.forward = lambda token, state: (
        torch.randn(4, 10, V, requires_grad=True),
        (torch.randn(4, 10, 8)[:, -1],),
    )
    model.training_step(StreamLoader(text(200), window=10, batch_size=4).batch(0, 0), 0)
    assert model._state[0].untyped_storage().nbytes() == 4 * 8 * 4  # a checkpoint writes the whole storage


def test_data_that_never_goes_on_leaves_no_state(model: LanguageModel):
    model.schema = schema(carry=False)
    model.training_step(StreamLoader(text(200), window=10, batch_size=4).batch(0, 0), 0)
    checkpoint = {}
    model.on_save_checkpoint(checkpoint)
    assert model._state is None
    assert checkpoint == {}


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 120), st.integers(1, 20), st.booleans())
def test_evaluation_is_exact_over_the_split(size: int, window: int, carry: bool):
    torch.manual_seed(0)
    model = LanguageModel(Tiny(), partial(torch.optim.Adam, lr=0.05))
    tokens = text(size)
    batches = TextEvalLoader(tokens, window=window, num_streams=4, carry=carry)
    measured = trainer().validate(model, batches, verbose=False)[0]
    nats = 0.0
    state = None
    with torch.no_grad():
        for token, target, goes_on, *_ in batches:
            logits, state = model.net.eval()(token, state if goes_on else None)
            chosen = logits.double().log_softmax(-1).gather(-1, target.clamp(min=0)[..., None])[..., 0]
            nats -= chosen[target != NO_TARGET].sum().item()
    loss = nats / (size - 1)
    assert measured["val/loss"] == pytest.approx(loss, rel=1e-6)
    assert measured["val/perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert measured["val/bits_per_char"] == pytest.approx(loss / math.log(2) / 1.5, rel=1e-6)


def test_evaluation_leaves_the_state_of_training_alone(model: LanguageModel):
    class Both(LanguageModel):
        def on_validation_epoch_start(self):
            super().on_validation_epoch_start()
            self.kept = self._state

        def on_validation_epoch_end(self):
            super().on_validation_epoch_end()
            assert self._state is self.kept

    both = Both(Tiny(), partial(torch.optim.Adam, lr=0.05))
    trainer(max_epochs=1).fit(
        both,
        StreamLoader(text(200), window=10, batch_size=4),
        TextEvalLoader(text(90), window=7, num_streams=3, carry=True),
    )
    assert both.kept is both._state is not None
    assert both.kept[0].shape == (4, 1, 8)


def scored(model: LanguageModel, batch: TextBatch) -> list[dict[str, float]]:
    """How likely a model finds rows of two characters a token."""
    samples = {"chars_per_token": np.full(len(batch.token), batch.chars_per_target)}
    return [row for [row] in to_records(Likelihood(), answer(model, batch, Likelihood()), samples)]


def test_a_text_is_scored_as_one_stream(model: LanguageModel):
    ids = torch.from_numpy(text(50).ids.astype(np.int64))[None]
    batch = TextBatch(ids[:, :-1], ids[:, 1:], False, chars_per_target=2.0, targets_per_row=49.0)
    model.schema = schema(carry=True)
    [scores] = scored(model.train(), batch)
    loss = F.cross_entropy(model.net(batch.token)[0][0], batch.target[0]).item()
    assert scores["nats_per_token"] == pytest.approx(loss, rel=1e-6)
    assert scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    assert scores["bits_per_char"] == pytest.approx(loss / math.log(2) / 2, rel=1e-6)
    model.schema = schema(carry=False)
    [each] = scored(model, batch)
    assert each["nats_per_token"] != scores["nats_per_token"]
    assert model.net.training


def test_what_is_no_number_stays_none(model: LanguageModel):
    nn.init.constant_(model.net.decoder.bias, math.nan)
    batches = TextEvalLoader(text(90), window=7, num_streams=4, carry=True)
    assert math.isnan(trainer().validate(model, batches, verbose=False)[0]["val/perplexity"])


# Ranks


def on_two_ranks(function, folder: Path) -> list:
    """Call function(rank) in two forked processes of a gloo group; return what they return."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work(rank: int) -> None:
        torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
        torch.save(function(rank), folder / f"{rank}.pt")
        torch.distributed.destroy_process_group()

    def both() -> int:
        if child := os.fork():
            work(0)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        code = 1
        try:
            work(1)
            code = 0
        finally:
            os._exit(code)

    assert forked(both) == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_ranks_carry_the_rows_of_one_and_measure_the_same(model: LanguageModel, tmp_path: Path):
    model = model.double()  # in float32, two rows and four may be rounded differently, by some kernels
    options = {"window": 10, "batch_size": 4}
    eval_options = {"window": 7, "num_streams": 4, "carry": True}

    def run(rank: int, world_size: int) -> dict:
        mine = {"rank": rank, "world_size": world_size}
        checkpoint, scores = {}, {}
        for batch in list(StreamLoader(text(300), **options, **mine))[:3]:
            model.training_step(batch, 0)
        model.on_save_checkpoint(checkpoint)
        state, model._state = model._state, None
        model.on_load_checkpoint(checkpoint)
        assert equal(model._state, state)
        model.net.eval()
        for batch in TextEvalLoader(text(95), **eval_options, **mine):
            model.validation_step(batch, 0)
        model.log_dict = lambda values, sync_dist: scores.update(values)
        model._log_scores("val")
        return {**checkpoint, "scores": scores}

    alone = run(0, 1)
    model.__dict__.pop("log_dict")
    for rank in on_two_ranks(lambda rank: run(rank, 2), tmp_path):
        torch.testing.assert_close(rank["carried_state"], alone["carried_state"], rtol=0, atol=1e-12)
        assert rank["scores"] == pytest.approx(alone["scores"], rel=1e-6)


# Sampling


LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=30)


@settings(max_examples=150, deadline=None)
@given(LOGITS, st.none() | st.integers(1, 35), st.floats(0.01, 1.0))
def test_top_k_and_top_p_are_the_plain_definition(values: list[float], top_k: int | None, top_p: float):
    logits = torch.tensor([values], dtype=torch.float64)
    kept = (keep_most_likely(logits.clone(), top_k, top_p)[0] > -math.inf).nonzero().flatten().tolist()
    order = sorted(range(len(values)), key=lambda i: -values[i])[:top_k]
    weights = np.exp([values[i] for i in order])
    expected, mass = [], 0.0
    for i, proba in zip(order, weights / weights.sum(), strict=True):
        if expected and mass >= top_p - 1e-12 and not math.isclose(mass, top_p, rel_tol=1e-9):
            break
        if expected and math.isclose(mass, top_p, rel_tol=1e-9):
            return  # at the very edge rounding decides
        expected.append(i)
        mass += proba
    assert kept == sorted(expected)
    assert torch.equal(keep_most_likely(logits, top_k, top_p)[0, kept], logits[0, kept])


@settings(max_examples=100, deadline=None)
@given(LOGITS, st.floats(0.2, 5), st.randoms())
def test_the_penalty_is_the_papers(values: list[float], penalty: float, rng):
    logits = torch.tensor([values], dtype=torch.float64)
    seen = torch.tensor([[rng.random() < 0.5 for _ in values]])
    expected = [
        (x / penalty if x > 0 else x * penalty) if was else x for x, was in zip(values, seen[0].tolist(), strict=True)
    ]
    assert penalise(logits, seen, penalty)[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_tokens_are_drawn_with_the_probability_they_have():
    logits = torch.tensor([1.0, 0.0, -1.0, 3.0]).log_softmax(-1).expand(20_000, 4)
    generator = torch.Generator().manual_seed(0)
    none = torch.zeros(20_000, 4, dtype=torch.bool)
    drawn = Sampling(temperature=2.0).draw(logits, none, generator)
    share = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(share, (logits[0] / 2).softmax(-1), atol=0.015, rtol=0)
    assert (Sampling(temperature=0.0).draw(logits, none, generator) == 3).all()


@pytest.mark.parametrize(
    ("option", "value"), [("temperature", -1), ("top_k", 0), ("top_p", 0), ("top_p", 1.5), ("repetition_penalty", 0)]
)
def test_an_option_out_of_bounds_is_named(model: LanguageModel, option: str, value: float):
    with pytest.raises(UserError, match=f"^{option}={value}: should be "):
        model.generate(torch.tensor([[1]]), 3, **{option: value})


def test_carrying_the_state_writes_what_reading_everything_again_would(model: LanguageModel):
    model = model.double()
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    options = {"temperature": 0.7, "top_k": 6, "top_p": 0.9, "repetition_penalty": 1.3}
    written = torch.stack(list(model.generate(prompt, 40, seed=3, **options)), 1)
    generator, tokens = torch.Generator().manual_seed(3), prompt
    for _ in range(40):
        with torch.no_grad():
            logits = model.net(tokens)[0][:, -1]
        seen = torch.zeros(2, V, dtype=torch.bool).scatter_(1, tokens, True)
        tokens = torch.cat([tokens, Sampling(**options).draw(logits, seen, generator)[:, None]], 1)
    assert torch.equal(written, tokens[:, 3:])


def test_generation_is_its_seeds_and_touches_nothing(model: LanguageModel):
    model.net.dropout.p = 0.5
    model.train()
    prompt = torch.tensor([[1, 2]])
    before = torch.get_rng_state()

    def write(seed: int) -> list[int]:
        return torch.cat(list(model.generate(prompt, 30, seed=seed))).tolist()

    assert write(1) == write(1) != write(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert model._state is None
    assert model.net.training
    stream = model.generate(prompt, 30)
    assert next(stream).shape == (1,)
    stream.close()
    assert model.net.training


def test_an_empty_prompt_of_tokens_is_refused(model: LanguageModel):
    with pytest.raises(UserError, match=r"the prompt has the shape \(2, 0\)"):
        model.generate(torch.zeros(2, 0, dtype=torch.int64), 3)


# Through the command line


ARGUMENTS = [
    "data=text",
    "data.path=prose.txt",
    "data.tokenizer=char",
    "data.vocab_size=13",
    "data.window=8",
    "data.batch_size=4",
    "data.eval_streams=4",
    "model=lstm_lm",
    "model.net.embedding_dim=5",
    "model.net.hidden_size=6",
    "model.net.output_dropout=0.2",
    "+trainer.gradient_clip_val=0.5",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=4",
]


PROSE = "the cat sat on the mat.\na hen ate the corn\n" * 12


@pytest.fixture
def prose(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEYDEN_DATA", str(workdir / "data"))
    (workdir / "prose.txt").write_text(PROSE)
    return workdir


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that wrote samples on its way, and whose text is gone."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LEYDEN_DATA", str(folder / "data"))
        (folder / "prose.txt").write_text(PROSE)
        assert cli("train", *ARGUMENTS, "callbacks=samples", "callbacks.samples.num_tokens=20") == 0
        (folder / "prose.txt").unlink()
        shutil.rmtree(folder / "data")
        return list_runs()[0]


def test_a_run_killed_in_the_middle_of_an_epoch_ends_as_if_it_had_not_been(prose: Path, trained: Run):
    """Bit for bit, the carried state too, with dropout and clipping; and that the other one wrote samples is no matter."""
    steps = trained.status["step"] // 3
    kill = steps + steps // 2

    def train() -> int:
        at_step(kill, lambda: os.kill(os.getpid(), signal.SIGKILL))
        return main(["train", *ARGUMENTS, "+checkpoint.every_n_steps=5"])

    assert forked(train) == -signal.SIGKILL
    [run] = list_runs()
    stopped = checkpoints.load(run.checkpoints()[0])
    assert stopped["global_step"] % steps  # not the end of an epoch
    assert [part.shape[0] for part in stopped["carried_state"]] == [4, 4]
    assert cli("resume", "last") == 0
    ended, expected = (checkpoints.load(r.path / "checkpoints/last.ckpt") for r in (run, trained))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "carried_state", "TextFiles"):
        assert equal(ended[key], expected[key]), key
    assert measured(run) == measured(trained)


def test_samples_are_written_after_every_validation(trained: Run):
    texts = {int(path.stem.removeprefix("step-")): path.read_text() for path in (trained.path / "samples").iterdir()}
    steps = trained.status["step"] // 3
    assert sorted(texts) == [steps, 2 * steps, 3 * steps]
    assert all(len(text) == 20 + 1 for text in texts.values())
    assert set("".join(texts.values())) <= set(PROSE)


def test_sample_writes_without_the_text_and_predict_scores(prose: Path, trained: Run, capfd: pytest.CaptureFixture):
    def sample(*arguments: str) -> str:
        assert cli("sample", str(trained.path), *arguments) == 0
        return capfd.readouterr().out

    out = sample("--prompt", "the ", "-n", "30", "--seed", "1")
    assert out.startswith("the ")
    assert len(out) == len("the ") + 30 + 1
    assert out == sample("--prompt", "the ", "-n", "30", "--seed", "1") != sample("--prompt", "the ", "-n", "30")
    several = sample("--num-samples", "3", "-n", "30", "--top-k", "3", "--checkpoint", "last")
    assert "\n--- 2 ---\n" in several
    assert "\n--- 3 ---\n" in several
    assert cli("predict", str(trained.path), "prose.txt", "--json") == 0
    scores = json.loads(capfd.readouterr().out)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["nats_per_token"]))
    assert scores["bits_per_char"] == pytest.approx(scores["nats_per_token"] / math.log(2))

    for arguments, message in (
        (["--prompt", "the Zoo é"], "--prompt: the text has 2 characters outside the vocabulary: 'Z', 'é'"),
        (["-n", "0"], "-n=0: should be 1 or more"),
        (["--temperature", "-1"], "--temperature=-1.0: should be 0 or more"),
        (["--top-p", "2"], "--top-p=2.0: should be above 0, and 1 at most"),
        (["--checkpoint", "step-1"], "--checkpoint=step-1"),
        (["--width", "3"], "unrecognized arguments"),
    ):
        assert cli("sample", str(trained.path), *arguments) == 2
        assert message in (error := capfd.readouterr().err)
        assert error.count("\n") == 1


def test_what_is_no_language_model_does_not_write(workdir: Path, capfd: pytest.CaptureFixture):
    with pytest.raises(UserError, match="callbacks=samples needs a language model; model is a BoringModel"):
        Samples().setup(trainer(), BoringModel(), "fit")
    assert cli("train", "data.limit=64", "trainer.max_epochs=1", "test=false", "model.net.width=2") == 0
    capfd.readouterr()
    assert cli("sample", "last") == 2
    error = capfd.readouterr().err
    assert "generates neither text nor pictures: leyden.models.ImageClassifier" in error
    assert error.count("\n") == 1


def test_windows_at_random_and_a_transformer_train_too(prose: Path, capfd: pytest.CaptureFixture):
    net = ["model=transformer_lm", "model.net.hidden_size=8", "model.net.num_heads=2", "model.net.context=8"]
    skip = ("model", "trainer.max_epochs")
    arguments = [a for a in ARGUMENTS if not a.startswith(skip)]
    assert cli("train", *arguments, *net, "data.carry=false", "trainer.max_epochs=1") == 0
    assert "carried_state" not in checkpoints.load(list_runs()[0].path / "checkpoints/last.ckpt")
    assert cli("sample", "last", "--prompt", "the cat sat on the mat", "-n", "20") == 0
