"""A sweep ends with the requested points, whatever is killed meanwhile, and trains nothing twice."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

from leyden import git
from leyden.cli import main
from leyden.config.locations import CONF
from leyden.run.directory import Run
from leyden.run.find import list_runs
from leyden.sweep import start
from leyden.sweep.directory import Sweep, list_sweeps
from leyden.sweep.plan import open_plan
from support.processes import cli, forked
from support.training import at_step, weights

pytestmark = pytest.mark.usefixtures("undrawn")

SMALL = [
    *("data.limit=128", "data.batch_size=32", "model.net.width=3", "model.net.input_size=16"),
    *("trainer.max_epochs=3", "test=false"),
]
SEEDS = ["train", "-m", *SMALL, "seed=0,1,2"]
TWO_JOBS = ["train", "-m", *SMALL, "trainer.max_epochs=2", "seed=0,1"]  # of eight steps


def runs_of(sweep: Sweep, trial: int) -> list[Run]:
    """The runs of a trial."""
    runs = sweep.runs()
    return [runs[number] for number in sweep.job_numbers(trial) if number in runs]


def newest() -> Sweep:
    return list_sweeps()[-1]


def states(sweep: Sweep) -> list[str]:
    return [trial.state.name for trial in sweep.study.trials]


def once(folder: Path, name: str, function: Callable[[], object]) -> None:
    """Call a function in the first process that comes here."""
    try:
        (folder / name).touch(exist_ok=False)
    except FileExistsError:
        return
    function()


def test_a_grid_trains_every_point_and_tells_what_it_was_worth(workdir: Path, capfd: pytest.CaptureFixture):
    assert cli("train", "-m", *SMALL, "trainer.max_epochs=1", "optimizer=adamw,sgd", "seed=0,1") == 0
    sweep = newest()
    runs = sweep.runs()
    assert [(run.config["optimizer"]["_target_"][12:], run.config["seed"]) for run in runs.values()] == [
        *(("AdamW", 0), ("AdamW", 1), ("SGD", 0), ("SGD", 1)),
    ]
    assert [trial.params for trial in sweep.study.trials] == [
        {"optimizer": optimizer, "seed": seed} for optimizer in ("adamw", "sgd") for seed in (0, 1)
    ]
    assert [t.value for t in sweep.study.trials] == [r.status["metrics"]["val/accuracy"] for r in runs.values()]
    assert [(o.metric, o.direction) for o in sweep.objectives] == [("val/accuracy", "maximize")]
    assert "seeds" not in runs[0].config
    assert sweep.path.parent.name == "digits_convnet"


def test_values_that_go_together_are_one_axis_of_the_grid(workdir: Path, capfd: pytest.CaptureFixture):
    pairs = "pairs={trainer.gradient_clip_val:[1,2],optimizer:[sgd,adamw]}"
    assert cli("train", "-m", *SMALL, "trainer.max_epochs=1", pairs, "seed=0,1") == 0
    sweep = newest()
    configs = [run.config for run in sweep.runs().values()]
    assert [(c["trainer"]["gradient_clip_val"], c["optimizer"]["_target_"][12:], c["seed"]) for c in configs] == [
        *((1, "SGD", 0), (2, "AdamW", 0), (1, "SGD", 1), (2, "AdamW", 1)),
    ]
    assert "pairs" not in configs[0]
    assert "trainer.gradient_clip_val=2 optimizer=adamw" in capfd.readouterr().out
    assert cli("show", str(sweep.path)) == 0
    assert "gradient_clip_val, optimizer" in capfd.readouterr().out


@pytest.mark.slow
def test_a_point_with_seeds_is_worth_their_mean(workdir: Path):
    folds = ["seeds=2", "folds=2", "optimizer.lr=1e-3,1e-2"]
    assert cli("train", "-m", *SMALL, "trainer.max_epochs=1", *folds) == 0
    sweep = newest()
    assert list(sweep.runs()) == list(range(8))
    configs = [sweep.runs()[number].config for number in sweep.job_numbers(1)]
    assert [(c["optimizer"]["lr"], c["data"]["fold"], c["seed"]) for c in configs] == [
        *((0.01, 0, 0), (0.01, 0, 1000), (0.01, 1, 1), (0.01, 1, 1001)),  # each fold draws its own
    ]
    assert [run.manifest["raw"]["seed"] for run in runs_of(sweep, 1)] == [0, 1, 0, 1]
    found = [run.status["metrics"]["val/accuracy"] for run in runs_of(sweep, 1)]
    assert sweep.study.trials[1].value == statistics.fmean(found)
    assert sweep.study.trials[1].user_attrs["std"] == [statistics.stdev(found)]
    prints = [run.manifest["data"]["val"]["sha256"] for run in sweep.runs().values()]
    assert prints == [prints[0], prints[0], prints[2], prints[2]] * 2
    assert prints[0] != prints[2]


@pytest.mark.slow
def test_what_is_given_up_keeps_its_checkpoint_and_all_ranks_stop_together(workdir: Path):
    pruner = "{_target_:optuna.pruners.SuccessiveHalvingPruner,min_resource:1,reduction_factor:3}"
    search = ["hydra.sweeper.sampler=tpe", "hydra.sweeper.n_trials=6", f"hydra.sweeper.pruner={pruner}"]
    space = ["optimizer.lr=tag(log,interval(1e-6,1e-2))", "hydra.sweeper.n_jobs=2", "accelerator=cpu_ddp"]
    goal = ["hydra.sweeper.objective=val/loss", "hydra.sweeper.direction=minimize"]
    assert cli("train", "-m", *SMALL, *search, *space, *goal) == 0
    sweep = newest()
    trials = sweep.study.trials
    assert len(trials) == 6
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in trials:
        (run,) = runs_of(sweep, trial.number)
        pruned = trial.state == TrialState.PRUNED
        assert run.status["state"] == ("pruned" if pruned else "finished")
        assert run.manifest["world_size"] == 2
        assert run.status["step"] == 4 * len(trial.intermediate_values)
        assert run.checkpoints()[0].stem == f"step-{run.status['step']:09d}"
        assert 1e-6 <= trial.params["optimizer.lr"] <= 1e-2
    given_up = next(t for t in trials if t.state == TrialState.PRUNED)
    (run,) = runs_of(sweep, given_up.number)
    assert cli("resume", str(run.path)) == 0  # by hand, to its end
    assert run.status["state"] == "finished"
    assert run.status["step"] == 12


def test_what_has_come_to_its_end_is_not_given_up(workdir: Path):
    pruner = "{_target_:optuna.pruners.SuccessiveHalvingPruner,min_resource:3,reduction_factor:3}"
    search = ["hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=2", f"hydra.sweeper.pruner={pruner}"]
    first = "hydra.sweeper.enqueue=[{optimizer.lr:1e-2},{optimizer.lr:1e-6}]"  # the second is worse at its end
    goal = ["hydra.sweeper.objective=val/loss", "hydra.sweeper.direction=minimize"]
    assert cli("train", "-m", *SMALL, *search, first, "optimizer.lr=interval(1e-6,1e-2)", *goal) == 0
    assert states(newest()) == ["COMPLETE", "COMPLETE"]


def test_a_killed_sweep_goes_on_where_it_was(workdir: Path, capfd: pytest.CaptureFixture):
    def killed() -> int:
        at_step(7, lambda: once(workdir, "killed", lambda: os.kill(os.getppid(), signal.SIGKILL)))
        return main(TWO_JOBS)

    assert cli(*TWO_JOBS) == 0
    assert forked(killed) == -signal.SIGKILL
    whole, sweep = list_sweeps()
    (run,) = sweep.runs().values()
    while run.is_locked():
        time.sleep(0.05)
    assert run.status["state"] == "preempted"
    assert states(sweep) == ["RUNNING"]
    assert cli("resume", "last") == 0
    assert f"the last run is {run.name}, of a sweep: resuming {sweep.name}" in capfd.readouterr().out
    assert states(newest()) == ["COMPLETE"] * 2
    assert "resumed at step " in (run.path / "log.txt").read_text()
    assert len(list_runs()) == 4
    for number in range(2):
        for name, weight in weights(whole.runs()[number]).items():
            assert torch.equal(weight, weights(sweep.runs()[number])[name])
    began = {p: p.stat().st_mtime_ns for p in sweep.path.glob("*/checkpoints/*")}
    assert cli("resume", sweep.path.name) == 0
    assert began == {p: p.stat().st_mtime_ns for p in sweep.path.glob("*/checkpoints/*")}


@pytest.mark.parametrize("ranks", [[], pytest.param(["accelerator=cpu_ddp"], marks=pytest.mark.slow)])
def test_a_killed_job_is_started_again(workdir: Path, ranks: list[str]):
    """Its process, or one of its ranks."""

    def killed() -> int:
        at_step(7, lambda: once(workdir, "killed", lambda: os.kill(os.getpid(), signal.SIGKILL)))
        return main([*TWO_JOBS, *ranks])

    assert forked(killed) == 0
    assert states(newest()) == ["COMPLETE"] * 2
    assert "resumed at step 4" in (newest().runs()[0].path / "log.txt").read_text()


@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_stops_all_with_a_checkpoint(workdir: Path, capfd: pytest.CaptureFixture, signum: int):
    def meet() -> None:
        """Wait until both jobs are here, then have one of them stop the sweep."""
        (workdir / f"{os.getpid()}.here").touch()
        while len(list(workdir.glob("*.here"))) < 2:
            time.sleep(0.01)
        once(workdir, "stopped", lambda: os.kill(os.getppid(), signum))
        time.sleep(0.5)

    def stopped() -> int:
        at_step(7, meet)
        return main([*SEEDS, "hydra.sweeper.n_jobs=2"])

    assert forked(stopped) == 128 + signum
    err = capfd.readouterr().err
    assert f"stopped by {signal.Signals(signum).name}; 0 of 3 trials are done: leyden resume digits_convnet/" in err
    assert "did not finish: job 0; job 1; " in err
    assert "seed=2" in err
    assert {run.status["state"] for run in list_runs()} == {"interrupted" if signum == signal.SIGINT else "preempted"}
    assert all(run.checkpoints() for run in list_runs())
    assert cli("resume", newest().name) == 0
    assert states(newest()) == ["COMPLETE"] * 3


def test_a_job_that_ended_is_not_said_to_be_left(workdir: Path, capfd: pytest.CaptureFixture):
    def in_the_second_job() -> None:
        if (workdir / "first").exists():
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(0.5)
        (workdir / "first").touch()

    def stopped() -> int:
        at_step(7, in_the_second_job)
        return main(["train", "-m", *SMALL, "seeds=2"])

    assert forked(stopped) == 143
    assert "did not finish: job 1\n" in capfd.readouterr().err


def test_a_signal_too_late_for_a_job_stops_those_after_it(workdir: Path):
    def stopped() -> int:
        from leyden.loggers.record import Record

        Record.close = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
        return main(["train", "-m", *SMALL, "trainer.max_epochs=1", "seed=0,1", "hydra/sweeper=basic"])

    assert forked(stopped) == 143
    assert [run.status["state"] for run in list_runs()] == ["finished"]


@pytest.mark.slow
def test_a_failure_is_recorded_and_ends_nothing(workdir: Path, capfd: pytest.CaptureFixture):
    sick = ["optimizer.lr=1e30,1e-3", "schedule=constant", "hydra.sweeper.retries=1"]
    assert cli("train", "-m", *SMALL, "trainer.max_epochs=1", *sick) == 1
    assert "1 of 2 trials failed, the last: FloatingPointError: train/loss is" in capfd.readouterr().err
    sweep = newest()
    assert states(sweep) == ["FAIL", "COMPLETE"]
    assert "train/loss is" in sweep.study.trials[0].user_attrs["reason"]
    assert (sweep.runs()[0].path / "log.txt").read_text().count("Traceback") == 2
    assert cli("resume", sweep.name, "--retry") == 1
    assert "1 of 3 trials failed" in capfd.readouterr().err
    sweep = newest()
    assert states(sweep) == ["FAIL", "COMPLETE", "FAIL"]
    assert sweep.study.trials[2].params == sweep.study.trials[0].params
    assert list(sweep.runs()) == [0, 1, 2]


@pytest.mark.slow
def test_what_failed_is_tried_once_more_and_a_grid_may_grow(workdir: Path):
    def troubled() -> int:
        at_step(2, lambda: once(workdir, "failed", lambda: int("x")))
        return main(["train", "-m", *SMALL, "trainer.max_epochs=1", "seed=range(4)", "hydra.sweeper.n_trials=2"])

    assert forked(troubled) == 1
    assert cli("resume", newest().name, "--retry") == 0
    assert cli("resume", str(newest().path / "0"), "--retry") == 2  # a run
    assert states(newest()) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert cli("resume", newest().name, "hydra.sweeper.n_trials=4") == 0
    assert [trial.params["seed"] for trial in newest().study.trials] == [0, 1, 0, 2, 3]
    assert states(newest()) == ["FAIL", *["COMPLETE"] * 4]


def test_a_failed_seed_leaves_its_sibling_alone(workdir: Path):
    def act() -> None:
        if Path(f"/proc/{os.getpid()}/fd/1").resolve().parent.name == "1":
            raise ZeroDivisionError
        while newest().study.trials[0].state == TrialState.RUNNING:
            time.sleep(0.05)

    def troubled() -> int:
        at_step(6, act)
        return main(["train", "-m", *SMALL, "seeds=2", "hydra.sweeper.n_jobs=2"])

    assert forked(troubled) == 1
    assert [run.status["state"] for run in newest().runs().values()] == ["finished", "failed"]
    assert states(newest()) == ["FAIL"]


@pytest.mark.slow
def test_a_renamed_sweep_with_references_in_its_overrides_goes_on(workdir: Path):
    one = ["seed=0,1", "hydra.sweeper.n_trials=1", "+data.split_seed=${seed}", "hydra.sweeper.storage=sqlite:///a.db"]
    assert cli("train", "-m", *SMALL, "trainer.max_epochs=1", *one) == 0
    folder = newest().path.rename(newest().path.with_name("my, (better) name"))
    assert states(Sweep(folder)) == ["COMPLETE"]
    assert cli("resume", str(folder), "hydra.sweeper.n_trials=2") == 0
    assert states(Sweep(folder)) == ["COMPLETE"] * 2
    assert [run.config["data"]["split_seed"] for run in Sweep(folder).runs().values()] == [0, 1]


@pytest.mark.slow
def test_points_with_conditions_are_searched(workdir: Path, capfd: pytest.CaptureFixture):
    (workdir / "conf/sweep").mkdir(parents=True)
    (workdir / "conf/sweep/mine.yaml").write_text(
        """# @package hydra.sweeper
sampler: random
n_trials: 6
params:
  optimizer: adamw,sgd
  optimizer.momentum: {when: optimizer=sgd, values: "0.5,0.9"}
  optimizer.nesterov: {when: optimizer.momentum=0.9, values: "true,false"}
enqueue: [{optimizer: sgd, optimizer.momentum: 0.9, optimizer.nesterov: true}]
"""
    )
    assert cli("train", "-m", *SMALL, "trainer.max_epochs=1", "sweep=mine") == 0
    trials = newest().study.trials
    assert trials[0].params == {"optimizer": "sgd", "optimizer.momentum": 0.9, "optimizer.nesterov": True}
    for trial in trials:
        assert ("optimizer.momentum" in trial.params) == (trial.params["optimizer"] == "sgd")
        assert ("optimizer.nesterov" in trial.params) == (trial.params.get("optimizer.momentum") == 0.9)
    assert {trial.params["optimizer"] for trial in trials} == {"adamw", "sgd"}
    capfd.readouterr()
    fixed = ["optimizer=adamw", "optimizer.lr=1e-3,1e-2"]
    assert main(["check", "-m", *SMALL, "sweep=mine", *fixed]) == 2
    assert "enqueue: optimizer is not in the search space" in capfd.readouterr().err
    assert main(["check", "-m", *SMALL, "sweep=mine", *fixed, "hydra.sweeper.enqueue=[]"]) == 0
    assert "momentum" not in capfd.readouterr().out


def test_code_that_is_edited_meanwhile_does_not_reach_later_jobs(workdir: Path):
    """A module of the project that its first import spoils, and that reads a file beside itself that git ignores."""
    own = workdir / "conf" / "model" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text((CONF / "model" / "convnet.yaml").read_text().replace("leyden.nets.ConvNet", "mine.Mine"))
    (workdir / "conf" / "project.yaml").write_text("targets: [mine]\n")
    (workdir / ".gitignore").write_text("runs\ndata.txt\n")
    (workdir / "data.txt").write_text("10")
    (workdir / "mine.py").write_text(
        "import pathlib\n\nfrom leyden.nets.cnn import ConvNet\n\n"
        "assert (pathlib.Path(__file__).parent / 'data.txt').read_text() == '10'\n"
        f"pathlib.Path({str(workdir / 'mine.py')!r}).write_text('raise ValueError')\n\n\n"
        "class Mine(ConvNet):\n    pass\n"
    )
    (workdir / "sklearn.py").write_text("raise ImportError")  # the root of the project stands last on the search path
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "add", "."], check=True)
    subprocess.run(["git", "-c", "user.name=me", "-c", "user.email=me", "commit", "-qm", "mine"], check=True)
    assert cli("train", "-m", *SMALL, "model=mine", "seed=0,1", "trainer.max_epochs=1") == 0
    assert states(newest()) == ["COMPLETE", "COMPLETE"]
    assert (workdir / "mine.py").read_text() == "raise ValueError"
    assert [run.manifest["git"]["dirty"] for run in newest().runs().values()] == [False, False]


def test_copies_of_the_project_stand_before_their_originals(workdir: Path, monkeypatch: pytest.MonkeyPatch):
    for path in (
        "lib/mine.py",
        "src/other.py",
        "sweeps/a/study",
        "sweeps/a/multirun.yaml",
        "sweeps/a/code/x.py",
        ".env",
    ):
        (workdir / path).parent.mkdir(parents=True, exist_ok=True)
        (workdir / path).touch()
    (workdir / ".gitignore").write_text(".env\n")
    subprocess.run(["git", "init", "-q"], check=True)
    monkeypatch.setattr(sys, "path", ["/first", str(workdir / "lib"), "/then", str(workdir)])
    sweep = Sweep(workdir / "runs" / "mine" / "one")
    start.keep_code(sweep)
    copy = sweep.path / "code"
    expected = ["/first", copy / "lib", workdir / "lib", "/then", copy, workdir, copy / "src"]
    assert sys.path == list(map(str, expected))
    assert (copy / ".env").is_symlink()
    assert not (copy / "sweeps").exists()
    assert git.states.pop(workdir)[0] is None  # no commit yet


def test_a_config_file_that_is_edited_meanwhile_does_not_reach_later_jobs(workdir: Path):
    file = workdir / "conf" / "optimizer" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("_target_: torch.optim.SGD\n_partial_: true\nlr: 0.1\n")
    with open_plan([*SMALL, "optimizer=adamw,mine"]) as plan:
        plan.check()
        file.write_text("_target_: torch.optim.SGD\n_partial_: true\nlr: 0.7\n")
        composed = [plan.compose(["optimizer=mine", f"seed={seed}"], seed) for seed in range(2)]
    assert [config.optimizer.lr for config in composed] == [0.1, 0.1]


@pytest.mark.slow
def test_a_sweep_does_not_go_on_with_another_config_file(workdir: Path, capfd: pytest.CaptureFixture):
    file = workdir / "conf" / "optimizer" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("_target_: torch.optim.SGD\n_partial_: true\nlr: 0.1\n")
    assert cli("train", "-m", *SMALL, "trainer.max_epochs=1", "optimizer=mine,adamw") == 0
    assert cli("resume", newest().path.name) == 0
    file.write_text("_target_: torch.optim.SGD\n_partial_: true\nlr: 0.7\n")
    capfd.readouterr()
    assert cli("resume", newest().path.name) == 2
    said = "config file optimizer/mine.yaml has changed since the sweep began: restore it, or begin another sweep"
    assert said in capfd.readouterr().err


@pytest.mark.slow
def test_a_point_that_is_clearly_worse_gets_no_more_seeds(workdir: Path):
    race = [
        "seeds=4",
        "hydra.sweeper.race=0.05",
        "hydra.sweeper.objective=val/loss",
        "hydra.sweeper.direction=minimize",
    ]
    assert cli("train", "-m", *SMALL, *race, "optimizer.lr=1e-2,1e-6") == 0
    sweep = newest()
    assert states(sweep) == ["COMPLETE", "PRUNED"]
    assert len(runs_of(sweep, 0)) == 4
    assert len(runs_of(sweep, 1)) == 3


def test_equal_points_are_trained_once(workdir: Path):
    search = ["hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=4", "optimizer.lr=1e-3,1e-2"]
    two = ["hydra.sweeper.objective=[val/loss,val/accuracy]", "hydra.sweeper.direction=[minimize,maximize]"]
    seed = "hydra.sweeper.seed=123456789"
    assert cli("train", "-m", *SMALL, "trainer.max_epochs=1", *search, *two, seed) == 0
    sweep = newest()
    assert states(sweep) == ["COMPLETE"] * 4
    assert not any("same_as" in trial.user_attrs for trial in sweep.best_trials())
    assert len(sweep.runs()) == 2
    copies = [t for t in sweep.study.trials if "same_as" in t.user_attrs]
    assert all(t.values == sweep.study.trials[t.user_attrs["same_as"]].values for t in copies)
    assert len(copies) == 2
    assert cli("resume", sweep.name, "hydra.sweeper.n_trials=6") == 0
    assert states(newest()) == ["COMPLETE"] * 6


@pytest.mark.slow
def test_a_grid_that_measures_nothing_trains_every_seed(workdir: Path):
    unmeasured = ["+trainer.limit_val_batches=0", "trainer.max_epochs=1"]
    assert cli("train", "-m", *SMALL, *unmeasured, "seeds=2", "optimizer.lr=1e-3,1e-2") == 0
    assert [run.status["state"] for run in newest().runs().values()] == ["finished"] * 4


def test_two_sweepers_do_not_share_a_folder(workdir: Path, capfd: pytest.CaptureFixture):
    assert cli("train", "-m", *SMALL, "trainer.max_epochs=1", "seed=0") == 0
    sweep = newest()
    with sweep.lock():
        assert cli("resume", sweep.name) == 2
    assert f"{sweep.name} is in use by process {os.getpid()}" in capfd.readouterr().err


def test_a_sweep_whose_config_has_changed_does_not_go_on(workdir: Path, capfd: pytest.CaptureFixture):
    (workdir / "conf/data").mkdir(parents=True)
    shutil.copy(Path(__file__).parents[2] / "conf/data/digits.yaml", workdir / "conf/data/mine.yaml")
    assert cli("train", "-m", "data=mine", *SMALL, "trainer.max_epochs=1", "seed=0") == 0
    file = workdir / "conf/data/mine.yaml"
    file.write_text(file.read_text().replace("val_size: 0.1", "val_size: 0.2"))
    assert cli("resume", newest().name) == 2
    assert "was begun with data.val_size=0.1, and now it is 0.2" in capfd.readouterr().err


def test_a_torn_journal_is_mended(workdir: Path):
    assert cli("train", "-m", *SMALL, "trainer.max_epochs=1", "seed=0,1", "hydra.sweeper.n_trials=1") == 0
    with (newest().path / "journal.log").open("a") as file:
        file.write('{"op_code":4,"worker')
    assert cli("resume", newest().name, "hydra.sweeper.n_trials=2") == 0
    assert states(newest()) == ["COMPLETE"] * 2


def test_a_job_can_be_trained_by_itself_again(workdir: Path):
    assert cli("train", "-m", *SMALL, "trainer.max_epochs=1", "seeds=2") == 0
    assert cli("rerun", str(newest().path / "1")) == 0
    first, again = newest().runs()[1], max(list_runs(), key=lambda run: run.path.stat().st_mtime_ns)
    assert json.dumps(first.config) == json.dumps(again.config)
