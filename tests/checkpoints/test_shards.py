"""Sharded training learns what unsharded training learns, and any number of ranks reads its checkpoints."""

import hashlib
import os
import pickle
import signal
import struct
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from leyden import checkpoints
from leyden.callbacks.checkpoint import Agreement
from leyden.callbacks.heartbeat import Heartbeat
from leyden.cli import main
from leyden.errors import UserError
from leyden.evaluation import load
from leyden.models.model import Model
from leyden.nets.transformer import TransformerLM
from leyden.run.directory import Run
from leyden.run.find import find_run, list_runs
from leyden.training import fsdp, strategies
from leyden.training.fsdp import FSDP
from support.processes import cli, forked

pytestmark = pytest.mark.usefixtures("undrawn")

CONVNET = ["data.limit=300", "data.batch_size=32", "model.net.width=3", "model.net.input_size=16"]  # 9 steps an epoch
TEXT = ["data=text", "data.path=prose.txt", "data.window=8", "data.batch_size=4", "data.eval_streams=4"]
SMALL = ["model.net.hidden_size=16", "model.net.num_layers=2"]
TRANSFORMER = [*TEXT, "model=transformer_lm", *SMALL, "model.net.num_heads=2", "model.net.mlp_size=32"]
LSTM = [*TEXT, "model=lstm_lm", *SMALL, "model.net.embedding_dim=8"]
USUAL = ["optimizer.lr=1e-2", "trainer.max_epochs=2", "test=false"]
# blocks of hundreds of parameters are gathered for themselves, as those of large nets are
SHARDS = ["accelerator=cpu_ddp", "trainer.strategy={_target_:leyden.training.FSDP,min_block:200}", "timeout=60"]
DDP = ["accelerator=cpu_ddp", "timeout=60"]
# Shards, copies and one process add gradients up in other orders. In float64 that moves a weight by 1e-9 a step at most
# (tests/test_launch.py says why float32 gives no such bound), here in fewer than a hundred steps.
EXACT = ["precision=64"]
ROUNDING = 1e-7


def train(name: str, *arguments: str, expected: int = 0) -> Run:
    assert cli("train", *USUAL, *arguments, f"name={name}") == expected
    return find_run(name)


def saved(run: Run, name: str = "last.ckpt") -> dict:
    return checkpoints.load(run.path / "checkpoints" / name)


def far(a: object, b: object) -> float:
    """Return the largest difference of two checkpoints' tensors."""
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor)
        return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0
    if isinstance(a, dict):
        assert isinstance(b, dict)
        assert a.keys() == b.keys()
        return max((far(a[key], b[key]) for key in a), default=0.0)
    if isinstance(a, list | tuple):
        assert isinstance(b, list | tuple)
        return max((far(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    return 0.0


def learned(run: Run) -> dict:
    return {key: saved(run)[key] for key in ("state_dict", "optimizer_states")}


@pytest.fixture
def prose(workdir: Path) -> Path:
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "dogs", "run", "by"]
    (workdir / "prose.txt").write_text(" ".join(words[(i * i + i // 7) % len(words)] for i in range(300)))
    return workdir


CASES = {
    "convolutions, clipped": [*CONVNET, "+trainer.gradient_clip_val=0.1"],
    "SGD, averaged": [*CONVNET, "optimizer=sgd", "callbacks=ema", "callbacks.ema.decay=0.9"],
    "transformer, tied": TRANSFORMER,
    "LSTM that writes": [*LSTM, "callbacks=samples", "callbacks.samples.num_tokens=5"],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_shards_learn_what_copies_and_one_process_learn(prose: Path, case: str):
    one, copies, shards = (train(f"r{i}", *EXACT, *CASES[case], *how) for i, how in enumerate(([], DDP, SHARDS)))
    assert (shards.path / "checkpoints" / "last.ckpt").is_dir()
    assert far(learned(shards), learned(copies)) < ROUNDING
    assert far(learned(shards), learned(one)) < ROUNDING
    assert shards.status["metrics"]["val/loss"] == pytest.approx(one.status["metrics"]["val/loss"], abs=1e-5)
    loops = saved(shards)["loops"], saved(one)["loops"]
    logged, logged_by_one = (part["fit_loop"]["epoch_loop.state_dict"].pop("logged") for part in loops)
    assert loops[0] == loops[1]
    assert far(logged[0]["monitored"], logged_by_one[0]["monitored"]) < 1e-5  # means over two ranks are rounded


@pytest.mark.slow
def test_every_rank_evaluates_with_rank_0s_statistics_of_batch_norms(workdir: Path):
    net = ["model=resnet9", "model.net.width=4", "model.net.scale=1"]
    options = [*net, "data.batch_size=16", "data.limit=96", "optimizer=sgd"]
    copies, shards = (train(f"r{i}", *EXACT, *options, *how) for i, how in enumerate((DDP, SHARDS)))
    assert far(saved(shards)["state_dict"], saved(copies)["state_dict"]) < ROUNDING
    assert shards.status["metrics"]["val/loss"] == pytest.approx(copies.status["metrics"]["val/loss"], abs=1e-5)


def stop_at(step: int, signum: int, *arguments: str) -> int:
    """Train in forked ranks; rank 0 gets a signal at the end of a step."""
    beat = Heartbeat.on_train_batch_end

    def on_train_batch_end(self, trainer, *rest):
        beat(self, trainer, *rest)
        if trainer.global_step == step and trainer.is_global_zero:
            os.kill(os.getpid(), signum)

    Heartbeat.on_train_batch_end = on_train_batch_end
    Agreement.INTERVAL = 0.0  # ask one another at every step
    return main(["train", *USUAL, *arguments])


@pytest.mark.slow
def test_resumed_by_as_many_ranks_bit_identical_and_by_2_4_1_within_tolerance(workdir: Path):
    options = [*EXACT, *CONVNET, "callbacks=ema", "callbacks.ema.decay=0.9", *SHARDS, "trainer.max_epochs=3"]
    whole = train("whole", *options)
    assert forked(stop_at, 5, signal.SIGTERM, *options, "name=same") == 143
    assert cli("resume", "same") == 0
    same = find_run("same")
    for key in ("state_dict", "current_model_state", "optimizer_states"):
        assert far(saved(same)[key], saved(whole)[key]) == 0.0
    assert forked(stop_at, 5, signal.SIGTERM, *options, "name=moved") == 143
    moved = find_run("moved")

    def go_on(*arguments: str) -> int:
        beat = Heartbeat.on_train_batch_end

        def on_train_batch_end(self, trainer, *rest):
            beat(self, trainer, *rest)
            if trainer.global_step == 14 and trainer.is_global_zero and trainer.world_size == 4:
                os.kill(os.getpid(), signal.SIGTERM)

        Heartbeat.on_train_batch_end = on_train_batch_end
        Agreement.INTERVAL = 0.0
        return main(["resume", str(moved.path), *arguments])

    assert forked(go_on, "trainer.devices=4") == 143
    assert moved.checkpoints()[0].name == "step-000000014.ckpt"
    assert moved.checkpoints()[0].is_dir()
    assert forked(go_on, "accelerator=cpu", *EXACT) == 0  # the accelerator's own precision is another
    assert moved.checkpoints()[0].is_file()
    for key in ("state_dict", "current_model_state", "optimizer_states"):
        assert far(saved(moved)[key], saved(whole)[key]) < ROUNDING


def flip_a_bit(shard: Path) -> None:
    """Damage the first tensor of a shard."""
    content = bytearray(shard.read_bytes())
    header = content.index(b"PK\x03\x04", content.index(b"data/0") - 100)  # of the record in the zip archive
    while b"data/0" not in content[header : header + 50]:
        header = content.index(b"PK\x03\x04", header + 4)
    name, extra = struct.unpack("<HH", content[header + 26 : header + 30])
    content[header + 30 + name + extra] ^= 1
    shard.write_bytes(content)


@pytest.mark.slow
def test_a_single_file_goes_on_in_shards_and_what_is_damaged_is_set_aside(workdir: Path, capfd):
    assert forked(stop_at, 12, signal.SIGINT, *EXACT, *CONVNET, "name=x") == 130
    assert cli("resume", "last", *SHARDS, *EXACT) == 0  # the accelerator's own precision is another
    run = list_runs()[0]
    assert [path.is_dir() for path in run.checkpoints()] == [True, False]
    reference = train("y", *EXACT, *CONVNET)
    assert far(learned(run), learned(reference)) < ROUNDING
    assert cli("evaluate", "x", "--checkpoint", "last") == 0

    flip_a_bit(run.checkpoints()[0] / "__1_0.distcp")
    assert checkpoints.problem(run.checkpoints()[0]).startswith("damaged at ")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoints.load(run.checkpoints()[0])
    run.set_status("interrupted")
    (run.path / "checkpoints" / ".step-000000021.ckpt.tmp").mkdir()
    assert cli("resume", str(run.path), *SHARDS, *EXACT) == 0
    assert "step-000000018.ckpt is damaged at" in capfd.readouterr().out
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "step-000000012.ckpt",
        "step-000000018.ckpt",
        "step-000000018.damaged",
    ]
    assert far(learned(run), learned(reference)) < ROUNDING
    for missing in (".metadata", "plain.ckpt", "__0_0.distcp"):
        path = run.checkpoints()[0] / missing
        aside = path.rename(path.with_name("aside"))
        assert checkpoints.problem(run.checkpoints()[0]) == "not a whole checkpoint (FileNotFoundError)"
        aside.rename(path)


class Evil:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("evil",)


def test_no_code_in_a_folder_is_run(workdir: Path):
    run = train("x", *CONVNET, "trainer.max_epochs=1", *SHARDS)
    path = run.checkpoints()[0]
    metadata = (path / ".metadata").read_bytes()
    (path / ".metadata").write_bytes(pickle.dumps(Evil()))
    assert checkpoints.problem(path) is None  # whole, but not to be loaded
    with pytest.raises(UserError, match=r"holds more than plain data and tensors, so it is not loaded: posix.mkdir"):
        checkpoints.load(path)
    (path / ".metadata").write_bytes(metadata.replace(b"__1_0.distcp", b"../a0.distcp"))
    with pytest.raises(UserError, match="not loaded"):
        checkpoints.load(path)
    (path / ".metadata").write_bytes(metadata)
    torch.save({"state_dict": {}, "x": Evil()}, path / "plain.ckpt")
    with pytest.raises(UserError, match="holds more than plain data"):
        checkpoints.load(path)
    assert not (workdir / "evil").exists()


class Scaled(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(shape))


def test_what_cannot_be_sharded_is_refused_before_the_start(workdir: Path, capfd: pytest.CaptureFixture):
    for arguments, message in (
        (
            ["trainer.strategy=fsdp", "model=gan", "data.batch_size=32"],
            "the ranks of a GAN do not all call its nets at the same time",
        ),
        (
            ["trainer.strategy=fsdp", "precision=16-mixed"],
            "precision=16-mixed: trainer.strategy=fsdp takes 32, bf16-mixed, bf16-true or 64",
        ),
        (["trainer.strategy=deepspeed"], "writes checkpoints of its own kind"),
        (["trainer.strategy=deepspeed_stage_3"], "writes checkpoints of its own kind"),
    ):
        assert cli("train", *DDP, *arguments) == 2
        assert message in (error := capfd.readouterr().err)
        assert error.count("\n") == 1
    assert list_runs() == []
    with pytest.raises(UserError, match=r"cannot shard net\.scale, a single number"):
        strategies.choose("fsdp", Model(Scaled(()), torch.optim.SGD), 2, "32-true")
    model = Model(Scaled((1,)), torch.optim.SGD)
    model.bias = nn.Parameter(torch.ones(1))
    with pytest.raises(UserError, match="bias is a parameter of Model itself"):
        strategies.choose("fsdp", model, 2, "32-true")
    assert strategies.choose("fsdp", model, 1, "32-true") == strategies.choose(FSDP(), model, 1) == "auto"


def test_blocks_are_found_where_weights_are_used_by_their_own_forward_alone():
    net = TransformerLM(50, 16, 2, 2, 8, 32)  # embedding and decoder share a weight
    assert fsdp._blocks(net, 1_000) == list(net.blocks)
    assert fsdp._blocks(net, 10_000) == []
    inner = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))  # 20 parameters each
    assert fsdp._blocks(nn.Sequential(inner, nn.Linear(4, 1)), 20) == [*inner]
    assert fsdp._blocks(nn.Sequential(inner, nn.Linear(4, 1)), 21) == [inner]
    shared = nn.Linear(4, 4)
    assert fsdp._blocks(nn.Sequential(shared, nn.ReLU(), shared), 1) == []


def while_written(act: object, *arguments: str) -> int:
    """Train with checkpoints in the background; `act` is called two steps into the writing of the second."""

    def run() -> int:
        beat, write, later = Heartbeat.on_train_batch_end, os.fsync, threading.Event()

        def on_train_batch_end(self, trainer, *rest):
            beat(self, trainer, *rest)
            if trainer.global_step == 14:
                later.set()

        def fsync(handle: int) -> None:
            if "step-000000012.ckpt" in str(Path(f"/proc/self/fd/{handle}").readlink()):
                assert threading.current_thread() is not threading.main_thread()
                assert later.wait(60)
                act()
            write(handle)

        Heartbeat.on_train_batch_end = on_train_batch_end
        os.fsync = fsync
        return main(
            ["train", *USUAL, *CONVNET, "+checkpoint.every_n_steps=6", "+checkpoint.background=true", *arguments]
        )

    return forked(run)


HOW = pytest.mark.parametrize("how", [[], SHARDS], ids=["file", "folder"])


@HOW
def test_a_checkpoint_is_on_the_disk_before_it_is_seen(workdir: Path, how: list):
    """A power cut may undo what was not synced, and in any order: a name must not outlive what it names."""

    def watched() -> int:
        events = Path("events.txt").resolve()

        def note(event: str) -> None:
            with events.open("a") as file:
                file.write(f"{event}\n")

        def fsync(handle: int) -> None:
            sync(handle)
            note(f"sync {Path(f'/proc/self/fd/{handle}').readlink()}")

        def rename(source: Path, target: Path) -> None:
            move(source, target)
            note(f"rename {Path(target).absolute()}")

        sync, move = os.fsync, os.rename
        os.fsync, os.rename, os.replace = fsync, rename, rename
        return main(["train", *USUAL, *CONVNET, "trainer.max_epochs=1", *how])

    assert forked(watched) == 0
    (path,) = list_runs()[0].checkpoints()
    path = path.resolve()
    events = Path("events.txt").read_text().splitlines()
    seen = events.index(f"rename {path}")
    temporary = path.with_name(f".{path.name}.tmp")
    for part in (temporary, *(temporary / file.name for file in path.glob("*"))):
        assert {f"sync {part}", f"sync {part}.tmp"} & {*events[:seen]}, (
            part
        )  # torch, too, writes some beside the target
    assert events[seen + 1] == f"sync {path.parent}"  # before last.ckpt is the new one, and older ones are removed


@pytest.mark.slow
@HOW
def test_killed_while_a_checkpoint_is_written_in_the_background_leaves_the_ones_before_whole(workdir: Path, how: list):
    assert while_written(lambda: os.kill(os.getpid(), signal.SIGKILL), *how) == (
        128 + signal.SIGKILL if how else -signal.SIGKILL
    )
    run = list_runs()[0]
    assert [path.name for path in run.checkpoints()] == ["step-000000009.ckpt", "step-000000006.ckpt"]
    assert [checkpoints.problem(path) for path in run.checkpoints()] == [None, None]
    links = {name: (run.path / "checkpoints" / f"{name}.ckpt").resolve().name for name in ("best", "last")}
    assert links == {"best": "step-000000009.ckpt", "last": "step-000000009.ckpt"}
    assert (run.path / "checkpoints" / ".step-000000012.ckpt.tmp").exists()
    assert cli("resume", "last") == 0
    assert not (run.path / "checkpoints" / ".step-000000012.ckpt.tmp").exists()
    straight = train("straight", *CONVNET, "+checkpoint.every_n_steps=6", *how)
    assert far(learned(run), learned(straight)) == 0.0


@HOW
def test_an_error_in_the_background_ends_the_run_and_is_told(workdir: Path, how: list, capfd: pytest.CaptureFixture):
    def fail() -> None:
        raise OSError(28, "No space left on device")

    assert while_written(fail, *how) == 1
    run = list_runs()[0]
    err = capfd.readouterr().err
    assert "step-000000012.ckpt" in err
    assert "No space left on device" in err
    assert run.status["state"] == "failed"
    assert run.checkpoints()[0].name == "step-000000009.ckpt"
    assert not list((run.path / "checkpoints").glob(".*"))


def test_a_stop_and_the_end_wait_for_what_is_written_in_the_background(workdir: Path):
    options = [*CONVNET, "+checkpoint.background=true", "name=x"]
    assert forked(stop_at, 5, signal.SIGTERM, *options) == 143
    run = find_run("x")
    assert [path.name for path in run.checkpoints()] == ["step-000000005.ckpt"]
    assert checkpoints.problem(run.checkpoints()[0]) is None
    assert cli("resume", "x") == 0
    assert far(learned(run), learned(train("y", *CONVNET))) == 0.0


@pytest.mark.parametrize(
    "how",
    [pytest.param(["callbacks=ema"], id="averaged"), pytest.param(SHARDS, id="folder", marks=pytest.mark.slow)],
)
def test_exported_weights_are_those_of_the_net(workdir: Path, how: list, capfd: pytest.CaptureFixture):
    run = train("x", *CONVNET, *how)
    assert cli("export", "x", "--weights", "x.safetensors", "--checkpoint", "last") == 0
    model, _ = load.load(run.config, run.checkpoints()[0])
    net = load.build_model(run.config)[0].net.eval()
    net.load_state_dict(load_file("x.safetensors"))
    image = torch.randn(4, 1, 8, 8)
    assert torch.equal(net(image), model.net(image))
    with safe_open("x.safetensors", "pt") as file:
        facts = file.metadata()
    assert facts["config"] == hashlib.sha256((run.path / "config.yaml").read_bytes()).hexdigest()
    assert (facts["run"], facts["step"], facts["part"]) == (run.name, "18", "net")
    before = Path("x.safetensors").read_bytes()
    for target, message in (
        ("x.safetensors", "exists already"),
        ("no/x.safetensors", "there is no folder no"),
        ("x.pt", "should end in .safetensors"),
    ):
        assert cli("export", "x", "--weights", target) == 2
        assert message in capfd.readouterr().err
    assert Path("x.safetensors").read_bytes() == before
