"""Runs in SLURM's queue continue until they are finished, here on a real SLURM with two nodes (scripts/slurm_up)."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from leyden.cli import main
from leyden.errors import UserError
from leyden.launch import slurm, slurm_script
from leyden.run import project_code
from leyden.run.directory import Run
from leyden.run.find import list_runs
from leyden.sweep.directory import list_sweeps
from support.processes import cli, forked
from support.training import weights

SLURM_UP = Path(__file__).parents[2] / "scripts" / "slurm_up"
REQUEST = 2  # the exit code of a wrong request

# a project whose one callback does to the job what a scheduler or a person would, at a step
PROJECT = """
import os
import subprocess
import time

from lightning import Callback


class Act(Callback):
    def __init__(self, acts: dict, slowly: bool = False) -> None:
        self.acts, self.slowly = acts, slowly
        self.restarts = os.environ.get("SLURM_RESTART_COUNT", "0")

    def on_train_batch_end(self, trainer, *_):
        act = self.acts.get(f"start{self.restarts}_step{trainer.global_step}")
        if act == "raise" and trainer.global_rank == trainer.world_size - 1:
            raise RuntimeError("a planned failure")
        if act and act != "raise" and trainer.is_global_zero:
            subprocess.run(act, shell=True)  # the signals reach it too
            time.sleep(1)
        if self.slowly and self.restarts == "0" and trainer.global_step >= 20:
            time.sleep(1)
"""
OVERRIDES = [
    "accelerator=cpu_ddp",
    "data.limit=300",
    "data.batch_size=10",  # 30 steps an epoch
    "+model.net.dropout=0.3",
    "trainer.max_epochs=8",
    "name=tiny",
]
QUEUED = [*OVERRIDES, "hydra/launcher=slurm"]


def slurm_up(action: str, folder: Path) -> str:
    done = subprocess.run([SLURM_UP, action, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin"):
        pytest.skip("there is no slurmctld: apt-get install munge slurmctld slurmd slurm-client")
    if os.geteuid() and subprocess.run(["getent", "hosts", "node2"], capture_output=True).returncode:
        pytest.skip("node1 and node2 do not resolve; scripts/slurm_up says how to name them")
    folder = tmp_path_factory.mktemp("slurm")
    slurm_up("up", folder)
    yield folder
    slurm_up("down", folder)


@pytest.fixture
def project(workdir: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a project in it, on a machine of the cluster."""
    monkeypatch.setenv("SLURM_CONF", str(cluster / "slurm.conf"))
    (workdir / "conf").mkdir()
    (workdir / "conf" / "project.yaml").write_text("targets: [mine]\n")
    (workdir / "mine.py").write_text(PROJECT)
    return workdir


def acting(slowly: bool = False, **acts: str) -> str:
    """The override that has the callback act: start0_step5="…"."""
    named = ", ".join(f'{name}: "{act}"' for name, act in acts.items())
    return f"+callbacks.act={{_target_: mine.Act, acts: {{{named}}}, slowly: {slowly}}}"


def assert_same(run: Run, reference: Run) -> None:
    a, b = weights(run), weights(reference)
    assert all(torch.equal(a[key], b[key]) for key in b)
    assert run.status["metrics"] == reference.status["metrics"]


def printed(run: Run) -> str:
    script = Path(json.loads((run.path / "slurm.json").read_text())["script"])
    return script.with_name(f"slurm-{slurm.job_of(run)}.txt").read_text()


def listed(capfd: pytest.CaptureFixture) -> list[dict]:
    capfd.readouterr()
    assert cli("ls", "--json") == 0
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


@pytest.mark.timeout(600)
def test_a_run_on_two_nodes_goes_on_exactly_when_its_time_is_up_and_when_it_is_requeued(
    project: Path, capfd: pytest.CaptureFixture
):
    act = acting(slowly=True, start1_step130="scontrol requeue $SLURM_JOB_ID")
    limits = ["hydra.launcher.time=2:00", "hydra.launcher.warn_seconds=60"]  # SLURM warns after 50 to 60 s
    assert cli("train", *QUEUED, "trainer.devices=1", "trainer.num_nodes=2", act, *limits) == 0
    (run,) = list_runs()
    assert listed(capfd)[0]["state"] in ("queued", "starting")
    (project / "mine.py").write_text("raise ImportError('edited after the run was submitted')")
    assert cli("wait", "last") == 0
    assert f"{run.name}: finished" in capfd.readouterr().out
    log = printed(run)
    assert "stopped by SIGUSR1" in log
    assert "stopped by SIGTERM" in log
    assert log.count("resumed at step") == 2
    assert log.count("2 ranks on 2 nodes") == 3
    assert cli("resume", "last") == 0
    assert "nothing left to do" in capfd.readouterr().out

    (project / "mine.py").write_text(PROJECT)
    assert cli("train", *OVERRIDES, "trainer.devices=2", acting()) == 0
    assert_same(run, list_runs()[1])


def test_a_sweep_is_a_job_array_and_what_fails_in_it_is_failed(project: Path, capfd: pytest.CaptureFixture):
    acts = [acting(start0_step5=act) for act in ("true", "raise")]
    sweep = f"{acts[0]},{acts[1].partition('=')[2]}"
    options = ["hydra.launcher.max_parallel=2", "hydra.launcher.wait=true"]
    assert cli("train", "-m", *QUEUED, "trainer.devices=2", "trainer.max_epochs=1", "seed=0", sweep, *options) == 1
    out, err = capfd.readouterr()
    runs = list_runs()
    assert [run.status["state"] for run in runs] == ["finished", "failed"]
    assert [run.path.name for run in runs] == ["0", "1"]
    assert "job 1 (" in out
    assert ") failed: rank 1 of 2 failed: RuntimeError: a planned failure at " in out
    assert "a planned failure" in runs[1].status["reason"]
    assert "a planned failure" in err
    jobs = slurm.queue([*runs, Run(project)]) or {}
    assert jobs == {}  # all are settled, so nobody is asked
    said = subprocess.run(["squeue", "--array", "--states=all", "-ho", "%i %T"], capture_output=True, text=True).stdout
    states = dict(line.split() for line in said.splitlines())
    assert [states[slurm.job_of(run)] for run in runs] == ["COMPLETED", "FAILED"]
    assert "#SBATCH --array=0-1%2" in (runs[0].path.parent / "job.sh").read_text()


def test_a_search_in_the_queue_outlives_the_sweeper(project: Path):
    def killed() -> int:
        Path("sweeper").write_text(str(os.getpid()))
        search = ["hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2"]
        act = acting(slowly=True, start0_step5="kill -9 $(cat sweeper)")  # so that they still train when it goes on
        return main(
            ["train", "-m", *QUEUED, "trainer.devices=1", "trainer.max_epochs=1", "seed=range(1000)", *search, act]
        )

    assert forked(killed) == -signal.SIGKILL
    (sweep,) = list_sweeps()
    assert [trial.state.name for trial in sweep.study.trials] == ["RUNNING"] * 2
    assert cli("resume", sweep.name) == 0
    (sweep,) = list_sweeps()
    assert [trial.state.name for trial in sweep.study.trials] == ["COMPLETE"] * 3
    assert len({run.config["seed"] for run in sweep.runs().values()}) == 3
    assert not any("resumed" in (run.path / "log.txt").read_text() for run in sweep.runs().values())


def test_what_is_cancelled_can_go_on(project: Path, capfd: pytest.CaptureFixture):
    act = acting(slowly=True, start0_step20=f"{sys.executable} -m leyden.cli cancel last")
    one = ["trainer.devices=1", "trainer.max_epochs=2", act]
    assert cli("train", *QUEUED, *one) == 0
    (run,) = list_runs()
    assert cli("wait", "last") == 1
    assert f"{run.name}: preempted: stopped by SIGTERM" in capfd.readouterr().out
    stopped_at = int(run.checkpoints()[0].stem.removeprefix("step-"))
    assert 20 <= stopped_at < 60
    (project / "mine.py").write_text(PROJECT.replace("on_train_batch_end", "not_called"))
    assert cli("submit", "last") == 0
    assert cli("wait", "last") == 0
    assert f"resumed at step {stopped_at}" in printed(run)
    assert cli("train", *OVERRIDES, *one) == 0
    assert_same(run, list_runs()[1])


def test_a_job_that_makes_no_step_does_not_loop(project: Path, capfd: pytest.CaptureFixture):
    (project / "mine.py").write_text(PROJECT.replace("on_train_batch_end", "on_train_epoch_start"))
    act = acting(start0_step0="scancel -s USR1 $SLURM_JOB_ID; sleep 1")
    assert cli("train", *QUEUED, "trainer.devices=1", "hydra.launcher.wait=true", act) == 1
    (run,) = list_runs()
    assert "made no step within its time limit and is not put back into the queue" in printed(run)
    assert "preempted: stopped by SIGUSR1" in capfd.readouterr().out


def test_what_waits_is_queued_and_then_cancelled(project: Path, capfd: pytest.CaptureFixture):
    later = ["hydra.launcher.extra={begin: now+1hour}", "trainer.devices=1"]
    assert cli("train", "-m", *QUEUED, "seed=0,1", *later) == 0
    sweep = list_runs()[0].path.parent
    assert f"2 runs in the queue as job {slurm.job_of(Run(sweep / '0')).partition('_')[0]}" in capfd.readouterr().out
    assert [row["state"] for row in listed(capfd)] == ["queued", "queued"]
    assert cli("submit", sweep.name) == 0
    assert f"{Run(sweep / '1').name} is queued" in capfd.readouterr().out
    assert cli("cancel", f"{sweep.parent.name}/{sweep.name}/1") == 0
    assert [row["state"] for row in listed(capfd)] == ["queued", "cancelled"]
    assert cli("cancel", str(sweep)) == 0
    assert cli("wait", str(sweep)) == 1
    assert capfd.readouterr().out.count(": cancelled: job ") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hydra.launcher.partiton=low"], "hydra.launcher.partiton: there is no such key; did you mean hydra.launcher.partition?"),
        (["+hydra.launcher.tme=1"], "hydra.launcher.tme=1: there is no such option; did you mean time?"),
        (["hydra.launcher.time=30"], "hydra.launcher.time=30: a time limit needs a colon (30:00 is 30 minutes)"),
        (["hydra.launcher.time=2:00"], "hydra.launcher.time=2:00 is no longer than the warning before its end"),
        (["hydra.launcher.extra={nodes: 3}"], "hydra.launcher.extra.nodes: leyden sets this itself"),
        (["hydra.launcher.extra={nodse: 3}"], "SLURM refuses: unrecognized option '--nodse=3'"),
        (["hydra.launcher.partition=nope"], "SLURM refuses: invalid partition specified: nope"),
        (["trainer.num_nodes=5"], "SLURM refuses: Requested node configuration is not available"),
        (["trainer.devices=auto"], "trainer.devices=auto: SLURM needs to know how many to allocate: write a number"),
        (["data.limt=3"], "did you mean data.limit?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_anything_is_made(project: Path, capfd: pytest.CaptureFixture, arguments, said):
    assert cli("train", *QUEUED, "trainer.devices=1", *arguments) == REQUEST
    assert said in capfd.readouterr().err
    assert list_runs() == []


def test_a_gpu_job_asks_for_gpus(project: Path):
    options = slurm_script.Options.from_config({**slurm_defaults(), "cpus_per_task": 8, "setup": ["module load cuda"]})
    with pytest.raises(UserError, match="Invalid generic resource"):  # this cluster has none
        slurm.check(options, [{"trainer": {"accelerator": "gpu", "devices": 4, "num_nodes": 1}}])
    trainer = {"accelerator": "gpu", "devices": 4, "num_nodes": 2}
    script = slurm_script.job_script(
        options, slurm_script.shape_of(trainer), [Path("/a run")], Path("/a run"), [Path("/a run/code")]
    )
    assert "#SBATCH --gres=gpu:4\n" in script
    assert "module load cuda\nrun='/a run'\nsrun --kill-on-bad-exit=1 --cpus-per-task=8 " in script


def slurm_defaults() -> dict:
    from leyden.config.compose import launcher

    return launcher(["hydra/launcher=slurm"])


@pytest.mark.parametrize(
    ("time", "expected"), [("30:00", 1800), ("1:30:00", 5400), ("1-0", 86400), ("2-1:30", 178200), ("1-2:3:4", 93784)]
)
def test_time_limits_are_read_as_sbatch_reads_them(time: str, expected: int):
    assert slurm_script.seconds(time) == expected


def test_without_slurm_it_says_so(workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    monkeypatch.setenv("PATH", str(workdir))
    assert cli("train", "hydra/launcher=slurm") == REQUEST
    assert "there is no sbatch here" in capfd.readouterr().err
    assert list_runs() == []


def test_a_run_of_somebodys_own_script_is_found_again_when_the_job_starts_again(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
):
    assert slurm.run_path("tiny", ["seed=1"]) is None
    for name, value in {"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    for seed in (1, 2):
        path = slurm.run_path("tiny", [f"seed={seed}"])
        assert path.name.endswith("-12.0")
        path.mkdir(parents=True)
        (path / "manifest.json").write_text(json.dumps({"overrides": [f"seed={seed}"]}))
        if seed == 1:
            first = path
    assert slurm.run_path("tiny", ["seed=1"]) != first
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert slurm.run_path("tiny", ["seed=1"]) == first
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    assert slurm.run_path("tiny", ["seed=1"]) != first


def test_code_is_kept_as_it_is(workdir: Path):
    (workdir / "src" / "mine").mkdir(parents=True)
    for name, text in {"src/mine/a.py": "x", "conf.yaml": "y", "notes": "z", "src/mine/fast.so": "s"}.items():
        (workdir / name).write_text(text)
    (workdir / "runs" / "code.py").parent.mkdir()
    (workdir / "runs" / "code.py").write_text("w")
    (workdir / "link.py").symlink_to("src/mine/a.py")
    (workdir / "far.py").symlink_to("/etc/hostname")

    def taken(name: str) -> set[str]:
        target = workdir / "runs" / name
        assert project_code.copy_code(workdir, target, workdir / "runs", 1) == [target / "src", target]
        assert (target / "link.py").readlink() == Path("src/mine/a.py")
        assert (target / "far.py").readlink() == Path("/etc/hostname")
        return {str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir()}

    code = {"src/mine/a.py", "src/mine/fast.so", "conf.yaml", "link.py", "far.py"}
    assert taken("bare") == code
    subprocess.run(["git", "init", "-q"], check=True)
    (workdir / ".gitignore").write_text("*.so\ndata\nruns\n__pycache__\n.venv\n")
    for path in ("data/weights.npy", "src/__pycache__/a.pyc", ".venv/pyvenv.cfg"):
        (workdir / path).parent.mkdir()
        (workdir / path).touch()
    assert taken("git") == {*code, "notes", ".gitignore"}
    links = {
        str(path.relative_to(workdir / "runs/git")) for path in (workdir / "runs/git").rglob("*") if path.is_symlink()
    }
    assert links == {"data", "link.py", "far.py"}
    assert (workdir / "runs/git/data/weights.npy").exists()
    (workdir / "big.bin").write_bytes(bytes(2_000_000))
    with pytest.raises(
        UserError, match=r"2 MB that would be copied as the code of jobs, big.bin 2 MB of it: list in .gitig"
    ):
        project_code.copy_code(workdir, workdir / "runs" / "third", workdir / "runs", 1)


def test_slurm_up_says_what_is_missing(tmp_path: Path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "realpath", "env"):
        (tools / name).symlink_to(shutil.which(name))
    script = tmp_path / "slurm_up"
    script.write_text(SLURM_UP.read_text().replace(":/usr/sbin:/sbin", ""))
    done = subprocess.run(
        ["bash", script, "up", tmp_path / "c"], env={"PATH": str(tools)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("slurm_up: no munged slurmctld slurmd sbatch here; apt-get install")
