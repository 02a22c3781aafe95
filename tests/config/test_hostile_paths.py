"""A config writes only into the run's own folder, and builds no class that reads, writes or starts anything else."""

from pathlib import Path

import pytest

from leyden.cli import main
from leyden.config.composition import Composition
from leyden.config.instantiate import instantiate
from leyden.config.output_paths import with_paths_in
from leyden.errors import UserError
from leyden.nets.timm import Timm
from leyden.run import directory
from leyden.run.find import list_runs
from support.processes import cli
from support.refused import WRONG_REQUEST, refused

pytestmark = pytest.mark.usefixtures("undrawn")

NAMES = [
    "..",
    "/tmp/x",
    "a/..",
    "a/../b",
    ".hidden",
    "-rf",
    "a\\b",
    "a b",
    "x" * 101,
    "last",
    '"a\\nb"',
    '"a\\x1bb"',
]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_has_no_name_that_leads_elsewhere(workdir: Path, capfd: pytest.CaptureFixture, name: str):
    assert refused(capfd, "check", f"name={name}").startswith("name")
    assert refused(capfd, "train", f"name={name}").startswith("name")
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize("name", ["..", "/tmp", "a/../..", "a/../b"])
def test_a_run_is_made_in_the_runs_folder_whatever_its_name(workdir: Path, name: str):
    with pytest.raises(UserError, match="leads out of the runs folder"):
        directory.Run.create(Composition({}, {"name": name}))
    assert list(workdir.iterdir()) == []


def test_the_jobs_of_a_sweep_stay_in_its_folder(workdir: Path, capfd: pytest.CaptureFixture):
    line = refused(capfd, "check", "-m", "seed=0,1", "hydra.sweep.subdir=..")
    assert line == "hydra.sweep.subdir=..: a job's folder lies in the sweep's: leave out / and .."


CALLBACKS = "lightning.pytorch.callbacks"
PROFILER = "lightning.pytorch.profilers.SimpleProfiler"
DEEPSPEED = "lightning.pytorch.strategies.DeepSpeedStrategy"
PLACES = {
    "checkpoint": (f"callbacks.x={{_target_: {CALLBACKS}.ModelCheckpoint, dirpath: %s}}", "callbacks.x.dirpath"),
    "its file": (f"callbacks.x={{_target_: {CALLBACKS}.ModelCheckpoint, filename: %s}}", "callbacks.x.filename"),
    "exception": (f"callbacks.x={{_target_: {CALLBACKS}.OnExceptionCheckpoint, dirpath: %s}}", "callbacks.x.dirpath"),
    "profiler": (f"trainer.profiler={{_target_: {PROFILER}, dirpath: %s, filename: p}}", "trainer.profiler.dirpath"),
    "offload": (f"trainer.strategy={{_target_: {DEEPSPEED}, nvme_path: %s}}", "trainer.strategy.nvme_path"),
    "inside": (
        f"trainer.strategy={{_target_: {DEEPSPEED}, config: {{csv_monitor: {{output_path: %s}}}}}}",
        "trainer.strategy.config.csv_monitor.output_path",
    ),
}


@pytest.mark.parametrize("place", ["/tmp/canary", "../canary", "a/../../canary", "'~/canary'", "'file:///tmp/canary'"])
@pytest.mark.parametrize("kind", PLACES)
def test_no_library_writes_outside_the_run(workdir: Path, capfd: pytest.CaptureFixture, kind: str, place: str):
    node, key = PLACES[kind]
    plain = place.strip("'")
    line = refused(capfd, "check", "++" + node.replace("%s", place))
    assert line.startswith(f"{key}='{plain}': a run writes in its own folder alone: name a place in it, such as ")


@pytest.mark.parametrize(
    "name", ["{/tmp/canary}", "{../canary}", "{step:c}", "{step].device.type[0}", "{step:>9999999}"]
)
def test_a_field_of_a_file_name_is_a_metric(workdir: Path, capfd: pytest.CaptureFixture, name: str):
    """Lightning writes its name into the file's, `=` and its value behind it."""
    node = f"+callbacks.x={{_target_: {CALLBACKS}.ModelCheckpoint, filename: '%s'}}"
    assert refused(capfd, "check", node.replace("%s", name)).startswith(f"callbacks.x.filename='{name}': a run writes")
    assert cli("check", node.replace("%s", "{epoch}-{step:06d}-{val/loss:.2f}")) == 0


def test_a_place_that_was_not_checked_is_refused_when_it_is_built(tmp_path: Path):
    node = {"_target_": PROFILER, "dirpath": "/tmp/canary", "filename": "x"}
    with pytest.raises(UserError, match="a run writes in its own folder alone"):
        with_paths_in({"profiler": node}, tmp_path)


def test_a_place_of_a_library_is_in_the_run(workdir: Path):
    checkpoint = f"+callbacks.x={{_target_: {CALLBACKS}.ModelCheckpoint, dirpath: mine/all, filename: 'a{{step}}'}}"
    profiler = f"+trainer.profiler={{_target_: {PROFILER}, dirpath: times, filename: p}}"
    small = ["data.limit=64", "model.net.width=2", "trainer.max_epochs=1"]
    assert cli("train", *small, checkpoint, profiler) == 0
    assert {path.name for path in workdir.iterdir()} == {"runs"}
    (trained,) = list_runs()
    assert list((trained.path / "mine" / "all").glob("a*.ckpt"))
    assert list((trained.path / "times").glob("*p*"))
    assert cli("evaluate", "last") == 0
    assert {path.name for path in workdir.iterdir()} == {"runs"}


CLOSED = {
    "leyden.launch.children.Children": "only classes of leyden.",
    "leyden.run.directory.Run": "only classes of leyden.",
    "leyden.checkpoints.sharded._Unpickler": "only classes of leyden.",
    "leyden.sweep.jobs.Processes": "leyden.sweep has no jobs.Processes",
    "lightning.pytorch.loggers.WandbLogger": "this class is not built",
    "lightning.pytorch.demos.mnist_datamodule.MNISTDataModule": "only classes of leyden.",
    "lightning.pytorch.demos.WikiText2": "only classes of leyden.",
    "lightning.pytorch.strategies.launchers.subprocess_script._SubprocessScriptLauncher": "this class is not built",
    "lightning.pytorch.callbacks.SpikeDetection": "this class is not built",
    "torchmetrics.functional.image.lpips._LPIPS": "this class is not built",
    "torchmetrics.multimodal.CLIPScore": "this class is not built",
    "torchmetrics.text.BERTScore": "this class is not built",
    "torchmetrics.text.InfoLM": "this class is not built",
    "torch.load": "only classes of leyden.",
    "torch.hub.load": "only classes of leyden.",
    "functools.partial": "only classes of leyden.",
}


@pytest.mark.parametrize("target", CLOSED)
def test_what_reads_or_starts_more_is_not_built(workdir: Path, capfd: pytest.CaptureFixture, target: str):
    line = refused(capfd, "check", f"+callbacks.x._target_={target}")
    assert line.startswith(f"callbacks.x._target_={target}: {CLOSED[target]}")


def test_a_class_that_an_allowed_module_only_imports_is_not_built():
    for target in (
        "leyden.callbacks.profile.profile",
        "leyden.callbacks.report.Sweep",
        "leyden.data.download.FileLock",
    ):
        with pytest.raises(UserError, match=r"leyden\.\w+ has no "):
            instantiate({"_target_": target}, "callbacks.x")
    with pytest.raises(UserError, match="not a class of an allowed package"):
        instantiate({"_target_": "lightning.pytorch.callbacks.timer.timedelta"}, "callbacks.x")


def test_where_leyden_writes_is_no_option(workdir: Path, capfd: pytest.CaptureFixture):
    for node in ("callbacks.Checkpoint", "loggers.TensorBoard", "loggers.Wandb"):
        assert main(["check", f"+callbacks.x={{_target_: leyden.{node}, run_dir: /tmp}}"]) == WRONG_REQUEST
        assert "callbacks.x.run_dir: leyden sets this itself" in capfd.readouterr().err
    for name in ("callbacks.profile.Profile", "callbacks.checkpoint.Checkpoint", "loggers.record.Record"):
        assert main(["check", f"+callbacks.x={{_target_: leyden.{name}, run_dir: /tmp}}"]) == WRONG_REQUEST
        err = capfd.readouterr().err
        assert f"has no {name.partition('.')[2]}; " in err
        assert "callbacks.x.run_dir: leyden sets this itself" in err


@pytest.mark.parametrize("option", ["checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_timm_reads_no_weights_from_elsewhere(option: str):
    with pytest.raises(
        UserError, match=f"^model.net.options.{option} is not allowed; pretrained=true loads timm's weights"
    ):
        Timm("resnet18", (3, 8, 8), 2, options={option: "/tmp/x"})
