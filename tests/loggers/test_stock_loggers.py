"""One line of YAML, the `_target_`, makes a logger of Lightning's log a run, into the run's own folder."""

import csv
import signal
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from leyden.cli import main
from leyden.loggers.metrics_file import read_metrics
from leyden.run.find import list_runs
from support.processes import cli, forked
from support.training import train_until

pytestmark = pytest.mark.usefixtures("undrawn")

LOGGERS = "lightning.pytorch.loggers"
REQUEST = 2  # the exit code of a wrong request
ONE_LINE = "+logger.x._target_="


@pytest.fixture
def interrupted(workdir: Path, request: pytest.FixtureRequest) -> Path:
    """The folder of a run that logged by one logger, was killed at step 20 and resumed."""
    target = f"{ONE_LINE}{LOGGERS}.{request.param}"
    assert forked(train_until, 20, signal.SIGKILL, target, "+logger.x.name=mine") == -signal.SIGKILL
    assert cli("resume", "last") == 0
    (run,) = list_runs()
    assert run.status["state"] == "finished"
    assert {path.name for path in workdir.iterdir()} == {"runs"}
    return run.path


@pytest.mark.parametrize("interrupted", ["CSVLogger"], indirect=True)
def test_csv_logger_goes_on_in_a_new_version(interrupted: Path):
    first, second = sorted(interrupted.glob("mine/version_*/metrics.csv"))
    assert [path.parent.name for path in (first, second)] == ["version_0", "version_1"]
    rows = [row for row in csv.DictReader(second.open()) if row["train/loss"]]
    record = [row for row in read_metrics(interrupted / "metrics.jsonl", "train/loss") if row["step"] > 18]
    assert [(int(row["step"]), float(row["train/loss"])) for row in rows] == [
        (row["step"], row["train/loss"]) for row in record
    ]


@pytest.mark.parametrize("interrupted", ["TensorBoardLogger"], indirect=True)
def test_tensorboard_logger_goes_on_in_a_new_version(interrupted: Path):
    versions = sorted(interrupted.glob("mine/version_*"))
    assert [path.name for path in versions] == ["version_0", "version_1"]
    events = EventAccumulator(str(versions[1])).Reload()
    record = [row["step"] for row in read_metrics(interrupted / "metrics.jsonl", "train/loss")]
    assert [event.step for event in events.Scalars("train/loss")] == [step for step in record if step > 18]


def test_a_logger_may_name_a_place_in_the_run(workdir: Path):
    node = f"{ONE_LINE}{LOGGERS}.CSVLogger"
    small = ["data.limit=64", "model.net.width=2", "trainer.max_epochs=1"]
    assert cli("train", *small, node, "+logger.x.save_dir=tables", "+logger.x.version=a") == 0
    (run,) = list_runs()
    assert (run.path / "tables" / "lightning_logs" / "a" / "metrics.csv").is_file()


@pytest.mark.parametrize("key", ["save_dir", "name", "version"])
@pytest.mark.parametrize("place", ["/tmp/canary", "../canary", "a/../../canary"])
@pytest.mark.parametrize("kind", ["CSVLogger", "csv_logs.CSVLogger"])
def test_no_stock_logger_writes_outside_the_run(
    workdir: Path, capfd: pytest.CaptureFixture, kind: str, key: str, place: str
):
    assert main(["check", f"{ONE_LINE}{LOGGERS}.{kind}", f"+logger.x.{key}={place}"]) == REQUEST
    assert f"logger.x.{key}='{place}': a run writes in its own folder alone" in capfd.readouterr().err


@pytest.mark.parametrize(("kind", "package"), [("MLFlowLogger", "mlflow"), ("CometLogger", "comet-ml")])
def test_a_logger_whose_package_is_missing_is_refused_at_once(
    workdir: Path, capfd: pytest.CaptureFixture, kind: str, package: str
):
    assert main(["check", f"{ONE_LINE}{LOGGERS}.{kind}"]) == REQUEST
    assert f"which is not installed: pip install {package}" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["WandbLogger", "LitLogger"])
def test_a_stock_logger_that_starts_programs_is_not_built(workdir: Path, capfd: pytest.CaptureFixture, kind: str):
    assert main(["check", f"{ONE_LINE}{LOGGERS}.{kind}"]) == REQUEST
    assert "this class is not built from a config" in capfd.readouterr().err
