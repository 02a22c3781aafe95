"""Everything that a run logs arrives in its directory, in W&B and in TensorBoard, whatever happens."""

import json
import logging
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from leyden.config.annotations import complaint
from leyden.config.signatures import signature
from leyden.errors import UserError
from leyden.loggers.metrics_file import read_metrics
from leyden.loggers.record import Record
from leyden.loggers.tensorboard import TensorBoard
from leyden.loggers.wandb import Wandb
from support.processes import forked
from support.wandb_server import KEY

CLIENT = [sys.executable, "-m", "wandb"]


def bits(value: float) -> bytes:
    return b"nan" if math.isnan(value) else struct.pack("<d", value)


names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).map(lambda name: "train/" + name)
tails = st.binary(max_size=20).filter(lambda tail: b"\n" not in tail)
rows = st.lists(st.tuples(st.integers(0, 50), st.dictionaries(names, st.floats(), max_size=4)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(rows=rows, last=st.integers(-1, 51), torn=st.binary(max_size=20).filter(lambda tail: b"\n" not in tail))
def test_record_reads_back_what_was_logged(tmp_path_factory, rows, last, torn):
    record = Record(tmp_path_factory.mktemp("run"))
    for step, values in rows:
        record.log_metrics(values, step)
    if rows:
        with record.path.open("ab") as file:
            file.write(torn)

    def check(lines, expected):
        assert [line["step"] for line in lines] == [step for step, _ in expected]
        for line, (_, values) in zip(lines, expected, strict=True):
            assert {name: bits(line[name]) for name in values} == {name: bits(v) for name, v in values.items()}
            assert line.keys() == {"step", "time", *values}

    check(read_metrics(record.path), rows)
    record.truncate(last)
    kept = [row for row in rows if row[0] <= last]
    check(read_metrics(record.path), kept)
    record.log_metrics({"val/loss": 0.1}, 60)
    check(read_metrics(record.path), [*kept, (60, {"val/loss": 0.1})])


def test_record_cuts_a_torn_line_before_the_next(tmp_path):
    record = Record(tmp_path)
    record.log_metrics({"train/loss": 1.0}, 1)
    with record.path.open("ab") as file:
        file.write(b'{"step": 2, "train/lo')
    assert [line["step"] for line in read_metrics(record.path)] == [1]
    record.log_metrics({"train/loss": 3.0}, 3)
    assert [line["step"] for line in read_metrics(record.path)] == [1, 3]
    assert record.path.read_bytes().count(b"\n") == 2


def test_record_takes_tensors_and_the_epoch(tmp_path):
    record = Record(tmp_path)
    record.log_metrics({"epoch": 2, "train/loss": torch.tensor(0.1), "val/n": torch.tensor(3)}, 7)
    [line] = read_metrics(record.path)
    assert list(line) == ["step", "epoch", "time", "train/loss", "val/n"]
    assert (line["step"], line["epoch"], line["val/n"]) == (7, 2, 3)
    assert line["train/loss"] == torch.tensor(0.1).item()


def test_record_keeps_the_last_figure_whole(tmp_path, figure):
    record = Record(tmp_path)
    record.log_figure("val/confusion", figure, 1)
    path = tmp_path / "figures" / "val" / "confusion.png"
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG")
    record.log_figure("val/confusion", figure, 2)
    assert path.read_bytes() != first
    assert [file.name for file in path.parent.iterdir()] == ["confusion.png"]


@pytest.fixture
def figure() -> Figure:
    figure = Figure(figsize=(1, 1))
    figure.subplots().imshow([[1, 0], [0, 1]])
    return figure


# ---- W&B, the real client ------------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path) -> Path:
    return new_run_dir(tmp_path)


@pytest.fixture
def messages():
    """What the loggers say to the user."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    source = logging.getLogger("leyden")
    source.setLevel(logging.INFO)
    source.addHandler(handler)
    yield said
    source.removeHandler(handler)


def new_run_dir(tmp_path: Path, stamp: str = "20260101-000000-ab") -> Path:
    path = tmp_path / "runs" / "digits_convnet" / stamp
    path.mkdir(parents=True)
    return path


def identity(run_dir: Path) -> dict:
    return json.loads((run_dir / "wandb.json").read_text())


def offline_records(run_dir: Path) -> list[dict]:
    [folder] = (run_dir / "wandb").glob("offline-run-*")
    printed = subprocess.run([*CLIENT, "leet", "inspect", "--json", folder], check=True, capture_output=True, text=True)
    return [json.loads(line) for line in printed.stdout.splitlines()]


def sync(run_dir: Path) -> None:
    folders = sorted((run_dir / "wandb").glob("offline-run-*"))
    subprocess.run([*CLIENT, "sync", *folders], check=True, capture_output=True)


def test_wandb_without_a_key_logs_offline(home, run_dir, figure, messages):
    environment = dict(os.environ)
    place = {"name": "grid", "trial": 1, "job": 3, "seed": 3, "fold": None}
    logger = Wandb(run_dir=run_dir, config={"model": {"lr": 0.1}}, sweep=place, tags=["a"])
    logger.log_metrics({"epoch": 0, "val/accuracy": 0.1}, 3)
    logger.log_figure("val/confusion", figure, 3)
    logger.close(1)

    records = offline_records(run_dir)
    values, picture = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert (values["val/accuracy"], values["trainer/global_step"]) == (0.1, 3)
    assert (picture["val/confusion._type"], picture["trainer/global_step"]) == ("image-file", 3)
    [run] = [record["run"] for record in records if record["type"] == "run"]
    assert run["config"]["update"]["model"] == {"lr": 0.1}
    assert run["config"]["update"]["sweep"] == {"name": "grid", "trial": 1, "job": 3, "seed": 3}
    assert (run["run_group"], run["job_type"]) == ("grid", "job")
    assert run["tags"] == ["a", "sweep:grid", "trial:1", "job:3", "seed:3"]
    assert run["display_name"] == "digits_convnet/20260101-000000-ab"
    [end] = [record["exit"] for record in records if record["type"] == "exit"]
    assert end["exit_code"] == 1
    assert identity(run_dir)["mode"] == "offline"
    assert [message.partition(";")[0] for message in messages] == ["W&B is offline"]
    assert os.environ == environment
    assert not list(home.rglob("*wandb*"))


def test_wandb_online_sends_everything(server, home, run_dir, figure, messages):
    config = {"model": {"lr": 0.1}}
    logger = Wandb(run_dir=run_dir, config=config, group="g", tags=["a"], log_checkpoints=True)
    logger.log_best("val/accuracy", "max")
    for step, accuracy in enumerate([0.1, 0.9, 0.5]):
        logger.log_metrics({"epoch": 0, "val_accuracy": accuracy}, step)
    logger.log_figure("val/confusion", figure, 2)
    checkpoint = run_dir / "last.ckpt"
    checkpoint.write_bytes(b"weights" * 10_000)
    logger.log_checkpoint(checkpoint, ["last"], 2)
    logger.close(0)

    [run] = server.runs.values()
    assert (run.name, run.project, run.exit_code) == (identity(run_dir)["id"], "leyden", 0)
    assert run.config["model"]["value"] == {"lr": 0.1}
    assert (run.fields["groupName"], run.fields["tags"]) == ("g", ["a"])
    assert server.values(run.name, "val/accuracy") == [(0, 0.1), (1, 0.9), (2, 0.5)]
    assert run.summary["val/accuracy"] == {"max": 0.9, "last": 0.5}
    assert any(path.startswith(f"/{run.name}/media/images/val/confusion") for path in server.blobs)
    [artifact] = server.artifacts
    assert (artifact["name"], sorted(artifact["aliases"])) == (f"model-{run.name}", ["last", "latest"])
    assert (artifact["metadata"], artifact["committed"]) == ({"step": 2}, True)
    assert server.blobs["/artifact/0/last.ckpt"] == checkpoint.read_bytes()
    assert messages == [f"W&B: {server.url}/me/leyden/runs/{run.name}"]
    assert not list(home.rglob("*wandb*"))
    copies = [p for p in run_dir.rglob("*") if p.is_file() and p.stat().st_size == checkpoint.stat().st_size]
    assert copies == [checkpoint]


def test_wandb_says_that_a_run_failed_and_resumes_it(server, run_dir):
    logger = Wandb(run_dir=run_dir)
    logger.log_best("val/loss", "min")
    for step, loss in [(0, 0.1), (1, 0.3), (2, 0.4)]:
        logger.log_metrics({"val/loss": loss}, step)
    logger.close(130)
    [run] = server.runs.values()
    assert run.exit_code == 130

    logger = Wandb(run_dir=run_dir)  # from a checkpoint at step 1: step 2 comes again
    logger.log_best("val/loss", "min")
    for step, loss in [(2, 0.4), (3, 0.2)]:
        logger.log_metrics({"val/loss": loss}, step)
    logger.close(0)
    assert list(server.runs) == [identity(run_dir)["id"]]
    assert run.exit_code == 0
    assert server.values(run.name, "val/loss") == [(0, 0.1), (1, 0.3), (2, 0.4), (2, 0.4), (3, 0.2)]
    assert [line["_step"] for line in run.history] == [0, 1, 2, 3, 4]
    assert run.summary["val/loss"]["last"] == 0.2


def test_two_wandb_runs_of_one_process_stay_two(server, home, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    machine = server.url.removeprefix("http://")
    (home / ".netrc").write_text(f"machine {machine}\n  login user\n  password {KEY}\n")
    for number in range(2):
        run_dir = new_run_dir(tmp_path, f"job{number}")
        logger = Wandb(run_dir=run_dir, sweep={"name": "lr-grid"})
        logger.log_metrics({"train/loss": number + 0.5}, 1)
        logger.close(number)
        run = server.runs[identity(run_dir)["id"]]
        assert run.exit_code == number
        assert server.values(run.name, "train/loss") == [(1, number + 0.5)]
        assert (run.fields["displayName"], run.fields["groupName"]) == (
            f"digits_convnet/job{number}",
            "lr-grid",
        )
        assert list((run_dir / "wandb").glob("run-*"))
    assert len(server.runs) == 2


@pytest.mark.parametrize("listens", [False, True], ids=["closed", "silent"])
def test_wandb_waits_seconds_for_a_dead_server(home, run_dir, monkeypatch, messages, listens):
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        if listens:
            port.listen()  # connections are made, and never answered
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        logger = Wandb(run_dir=run_dir, start_timeout=2)
        start = time.monotonic()
        logger.log_metrics({"train/loss": 0.5}, 1)
        assert time.monotonic() - start < 8
        logger.close(0)
    [log] = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    assert b"train/loss" in log.read_bytes()
    [message] = messages
    assert message.startswith("W&B did not accept the run, which continues offline (")
    assert identity(run_dir)["mode"] == "offline"


@pytest.mark.slow
def test_wandb_sync_joins_what_was_logged_offline_and_online(server, run_dir):
    for number, mode in enumerate(["online", "offline", "offline"]):
        logger = Wandb(run_dir=run_dir, mode=mode, log_checkpoints=True)
        for step in (2 * number, 2 * number + 1):
            logger.log_metrics({"train/loss": step / 10}, step)
        checkpoint = run_dir / "last.ckpt"
        checkpoint.write_text(f"weights {number}")
        logger.log_checkpoint(checkpoint, ["last"], 2 * number)
        logger.close(number % 2)
        time.sleep(1)  # folders are named by the second
    sync(run_dir)
    sync(run_dir)  # adds nothing
    [run] = server.runs.values()
    assert server.values(run.name, "train/loss") == [(step, step / 10) for step in range(6)]
    assert run.exit_code == 0
    assert [server.blobs[f"/artifact/{n}/last.ckpt"] for n in range(3)] == [
        b"weights 0",
        b"weights 1",
        b"weights 2",
    ]


@pytest.mark.slow
def test_wandb_gives_up_on_a_server_that_dies_and_sync_sends_the_rest(server, run_dir, messages):
    logger = Wandb(run_dir=run_dir, finish_timeout=2)
    logger.log_metrics({"train/loss": 0.0}, 0)
    server.refusal = 503
    logger.log_metrics({"train/loss": 0.1}, 1)
    start = time.monotonic()
    logger.close(0)
    assert time.monotonic() - start < 8
    assert messages[-1].startswith("W&B did not receive everything in time")
    server.refusal = None
    command = messages[-1].partition("with: wandb ")[2]
    subprocess.run([*CLIENT, *command.split()], check=True, capture_output=True)
    [run] = server.runs.values()
    assert server.values(run.name, "train/loss") == [(0, 0.0), (1, 0.1)]
    assert run.exit_code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="finds the client's process in /proc")
def test_training_outlives_the_wandb_client(home, run_dir, messages):
    # A killed client leaves a thread behind, and later tests fork from this process.
    assert forked(_log_to_a_dead_client, run_dir, messages) == 0


def _log_to_a_dead_client(run_dir: Path, messages: list[str]) -> int:
    logger = Wandb(run_dir=run_dir)
    logger.log_metrics({"train/loss": 0.5}, 1)
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [int(pid) for child in children for pid in child.read_text().split()]
    [client] = [pid for pid in pids if "wandb" in Path(f"/proc/{pid}/comm").read_text()]
    os.kill(client, signal.SIGKILL)
    for step in range(2, 30):
        logger.log_metrics({"train/loss": 0.5}, step)
        time.sleep(0.05)
    logger.close(0)
    return (
        sum("client died, so from here on this run logs only to metrics.jsonl" in message for message in messages) != 1
    )


def test_wandb_disabled_writes_nothing(home, run_dir):
    logger = Wandb(run_dir=run_dir, mode="disabled")
    logger.log_metrics({"train/loss": 0.5}, 1)
    logger.close(0)
    assert not (run_dir / "wandb").exists()


def test_wandb_follows_the_users_environment(home, run_dir, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = Wandb(run_dir=run_dir)
    logger.log_metrics({"train/loss": 0.5}, 1)
    logger.close(0)
    assert identity(run_dir)["mode"] == "offline"


def test_wandb_online_needs_a_key(home, run_dir, monkeypatch):
    logger = Wandb(run_dir=run_dir, mode="online")
    with pytest.raises(UserError, match=r"logger\.wandb\.mode=online needs a key: run `wandb login`"):
        _ = logger.experiment
    logger.close(1)
    monkeypatch.setenv("WANDB_API_KEY", "short")
    logger = Wandb(run_dir=run_dir)
    with pytest.raises(UserError, match=r"logger\.wandb\.mode=auto cannot use the key it found: .*WANDB_API_KEY"):
        _ = logger.experiment
    logger.close(1)
    assert "WANDB_CACHE_DIR" not in os.environ


# ---- TensorBoard ---------------------------------------------------------------------------------


def test_tensorboard_keeps_values_and_figures(run_dir, figure):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoard(run_dir=run_dir)
    for step in range(4):
        logger.log_metrics({"train/loss": step / 2}, step)
    logger.log_figure("val/confusion", figure, 3)
    logger.finalize("failed")
    logger = TensorBoard(run_dir=run_dir)
    logger.truncate(1)
    logger.log_metrics({"train/loss": 7.0}, 2)
    logger.finalize("success")

    events = accumulator.EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(0, 0.0), (1, 0.5), (2, 7.0)]
    assert events.Tags()["images"] == ["val/confusion"]
    assert figure.axes


def test_tensorboard_says_how_to_install_it(run_dir, monkeypatch):
    monkeypatch.setattr("leyden.loggers.tensorboard.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'leyden\[tensorboard\]'"):
        TensorBoard(run_dir=run_dir)


# ---- config --------------------------------------------------------------------------------------

CONF = Path(__file__).parents[2] / "conf"
TARGETS = {"wandb": "leyden.loggers.Wandb", "tensorboard": "leyden.loggers.TensorBoard"}


@pytest.mark.parametrize("default", ["null", "none"])
@pytest.mark.parametrize("names", [[], ["none"], ["wandb"], ["tensorboard"], ["wandb", "tensorboard"]], ids=str)
def test_loggers_compose_by_name(tmp_path, default, names):
    (tmp_path / "main.yaml").write_text(
        f"hydra: {{searchpath: ['file://{CONF}']}}\ndefaults: [{{logger: {default}}}, _self_]\n"
    )
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        cfg = compose("main", [f"logger=[{','.join(names)}]"] if names else [])
    loggers = cfg.get("logger") or {}
    assert {name: loggers[name]._target_ for name in loggers} == {n: TARGETS[n] for n in names if n != "none"}


SUPPLIED = {"wandb": {"run_dir", "config", "sweep"}, "tensorboard": {"run_dir"}}  # by leyden


@pytest.mark.parametrize("name", TARGETS)
def test_logger_options_are_arguments(name, tmp_path):
    tree = OmegaConf.merge({"tags": [], "notes": None}, OmegaConf.load(CONF / "logger" / f"{name}.yaml"))
    node = OmegaConf.to_container(tree, resolve=True)[name]
    assert node.pop("_target_") == TARGETS[name]
    parameters = signature(TARGETS[name]).parameters
    assert {"run_dir", "config", "sweep"} & parameters.keys() == SUPPLIED[name]
    assert not SUPPLIED[name] & node.keys()
    assert [complaint(parameters[key], value) for key, value in node.items()] == [None] * len(node)
    if name == "wandb":
        assert complaint(parameters["mode"], "onlin")
