"""A sweep that cannot be right is refused in one line, before anything is trained if its config shows that."""

from pathlib import Path

import pytest

from leyden.cli import main
from leyden.run.find import list_runs
from support.processes import cli

pytestmark = pytest.mark.usefixtures("undrawn")

SMALL = [
    *("data.limit=128", "data.batch_size=32", "model.net.width=3", "model.net.input_size=16"),
    *("trainer.max_epochs=3", "test=false"),
]
FIRST = "hydra.sweeper.sampler=random hydra.sweeper.n_trials=2 seed=range(3) hydra.sweeper.enqueue"
WRONG = {
    "optimizer.lr=interval(1,0)": r"optimizer.lr: interval(1.0,0.0) ends below its start: write interval(0.0,1.0)",
    "optimizer.lr=interval(0,1)": "optimizer.lr: an interval has no grid: write choice(…) or range(…), or choose",
    "seed=range(3,3)": "seed: range(3,3,1) is empty",
    "seed=1,1": "seed: 1 is listed twice",
    "optimizer.lr=tag(logs,range(1,3))": "optimizer.lr: there is no tag logs; the only one is log",
    "hydra.sweeper.sampler=tpe": "hydra.sweeper.sampler=tpe has no end: write hydra.sweeper.n_trials=…",
    "hydra.sweeper.sampler=tpe hydra.sweeper.n_trials=3": "hydra.sweeper.sampler=tpe: nothing is varied: write a key",
    "hydra.sweeper.sampler=tpee": "hydra.sweeper.sampler=tpee: there is no such sampler; did you mean tpe?",
    "+hydra.sweeper.n_trails=3": "hydra.sweeper.n_trails=3: there is no such option; did you mean n_trials?",
    "hydra.sweeper.objective=val/f1": "hydra.sweeper.objective=val/f1 has no known direction: write",
    "hydra.sweeper.pruner=asha hydra.sweeper.objective=test/f1 hydra.sweeper.direction=maximize": "needs an objective "
    "that every validation logs, val/…, not test/f1",
    "seeds=2 seed=1": "seed is set already: leave out seed=…, or the seeds and folds",
    "sweep=two_seeds seeds=3 optimizer.lr=1e-3,1e-2": "seeds=3: the sweep's file has other seeds: write "
    "hydra.sweeper.seeds=3",
    "pairs={model.net.width:[4,8],optimizer.lr:[1e-2]}": "pairs: the keys need equally many values, and "
    "model.net.width has 2, optimizer.lr has 1",
    "pairs={model.net.width:[4,8]}": "pairs takes two or more keys, each with a list of values: pairs='{",
    "pairs={model.net.width:8,optimizer.lr:1e-2}": "pairs takes two or more keys, each with a list of values",
    "pairs={model.net.width:[4,4],optimizer.lr:[1e-2,1e-2]}": "pairs: 4, 0.01 is listed twice",
    "pairs={optimizer.lr:[4,8],seed:[0,1]} seed=2,3": "pairs: seed is set elsewhere too: leave one of them out",
    "pairs={optimizer.lr:[4,8],seed:[0,1]} seeds=2": "seed is set already: leave out seed=…, or the seeds and folds",
    "pairs={optimizer.lrr:[4,8],seed:[0,1]}": "optimizer.lrr: there is no such key; did you mean optimizer.lr?",
    "pairs={optimizer.lr:[4,x],seed:[0,1]}": "job 1 (data.limit=128",
    f"pairs={{optimizer.weight_decay:[4,8],optimizer.lr:[1e-2,1e-3]}} {FIRST}=[{{optimizer.weight_decay:8}}]": "optimizer.weight_decay is "
    "paired with optimizer.lr: set both",
    f"pairs={{optimizer.weight_decay:[4,8],optimizer.lr:[1e-2,1e-3]}} {FIRST}=[{{optimizer.weight_decay:8,optimizer.lr:1e-2}}]": "is not "
    "in the search space, which has 4, 0.01; 8, 0.001",
    "seeds=0": "hydra.sweeper.seeds=0: ",
    "seeds=0,1": "seeds=0,1: write seeds=[0,1], or their number",
    "seeds=[1,1]": "seeds=[1, 1]: a seed is listed twice",
    "hydra.sweep.subdir=a/${hydra.job.num}": "hydra.sweep.subdir=a/${hydra.job.num}: a job's folder lies in the sweep's",
    "optimizer.lr=1e-3,x": "job 1 (data.limit=128",
    "hydra.sweeper.race=0.05": "hydra.sweeper.race compares the seeds or folds of points",
    "seeds=3 hydra.sweeper.race=0.05": "hydra.sweeper.race=0.05 compares points after 3 seeds and folds: each needs 4",
    "seed=0,1 hydra.sweeper.objective=[val/loss,val/loss] hydra.sweeper.direction=[minimize,minimize]": "a metric is listed twice",
    "seed=0,1 hydra.sweeper.pruner={_target_:optuna.samplers.TPESampler}": "hydra.sweeper.pruner._target_="
    "optuna.samplers.TPESampler is not an Optuna pruner",
    "seed=0,1 hydra.sweeper.pruner={_target_:optuna.pruners.PatientPruner,patience:1}": "PatientPruner needs wrapped_pruner",
    f"{FIRST}=[{{seed:big}}]": "seed=big is not in the search space, which goes from 0 to 2",
    f"{FIRST}=[{{sed:1}}]": "hydra.sweeper.enqueue: sed is not in the search space; did you mean seed?",
    "sweep=bare seed=0,1": 'conf/sweep/bare.yaml: a search space begins with the line "# @package hydra.sweeper"',
    "sweep=torn": "not valid YAML: ",
    "sweep=mine": "hydra.sweeper.params.optimizer.lr: when: optimizer=sgd: optimizer is not varied before it",
}


LATE = {  # what only a run, or a server, can tell
    "hydra.sweeper.objective=val/acuracy hydra.sweeper.direction=maximize": "objective=val/acuracy was not logged; "
    "did you mean val/accuracy?",
    "hydra.sweeper.pruner=asha +trainer.limit_val_batches=0": "needs validations, and this run makes none",
    "hydra.sweeper.storage=sqlite:////nowhere/a.db": "hydra.sweeper.storage cannot be reached: ",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_sweep_is_refused(workdir: Path, capfd: pytest.CaptureFixture, wrong: str):
    (workdir / "conf/sweep").mkdir(parents=True)
    params = "params: {optimizer.lr: {when: optimizer=sgd, values: 'interval(0,1)'}}"
    (workdir / "conf/sweep/mine.yaml").write_text(f"# @package hydra.sweeper\n{params}\n")
    (workdir / "conf/sweep/bare.yaml").write_text("n_trials: 3\n")
    (workdir / "conf/sweep/two_seeds.yaml").write_text("# @package hydra.sweeper\nseeds: 2\n")
    (workdir / "conf/sweep/torn.yaml").write_text("# @package hydra.sweeper\nparams: {\n")
    assert main(["check", "-m", *SMALL, *wrong.split()]) == 2
    assert WRONG[wrong] in capfd.readouterr().err


@pytest.mark.parametrize("wrong", LATE)
def test_a_sweep_that_cannot_be_right_ends_with_its_first_job(workdir: Path, capfd: pytest.CaptureFixture, wrong: str):
    assert cli("train", "-m", *SMALL, "seed=0,1", *wrong.split()) == 2
    err = capfd.readouterr().err
    assert LATE[wrong] in err
    assert "Traceback" not in err
    assert len(list_runs()) <= 1


def test_words_of_a_sweep_need_one(workdir: Path, capfd: pytest.CaptureFixture):
    for word in ("seeds=3", "hydra.sweeper.n_trials=3"):
        assert cli("train", *SMALL, word) == 2
        assert f"{word} makes a sweep: add -m" in capfd.readouterr().err
