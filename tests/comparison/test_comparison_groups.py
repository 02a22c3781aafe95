"""Each argument of `leyden compare` selects the runs that a user means; groups that cannot be compared are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from leyden.config.locations import CONF
from support.comparison import A, compare, make, rows

REQUEST = 2  # the exit code of a wrong request


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["runs/a"], A),
        (["a"], A),
        (["runs/a/[0-2]"], A[:3]),
        (["a/*"], A),
        (["a/0,b/1"], None),  # of different configs
        (["last"], None),  # one run
        (["x=a/0,a/3"], [A[0], A[3]]),
    ],
)
def test_a_word_names_runs(seeds: Path, words: list[str], found: list[float] | None):
    Path("a").mkdir()  # of something else
    code = compare(*words, "--metric", "test/accuracy", "--save", "found.csv")
    if found is None:
        assert code == (0 if words == ["last"] else REQUEST)
    else:
        assert int(rows()[0]["n"]) == len(found)
        assert float(rows()[0]["mean"]) == pytest.approx(np.mean(found))


def sweep(folder: str) -> None:
    """Write a sweep of three trials of two seeds; the second is the best."""
    Path("runs", folder).mkdir(parents=True)
    node = yaml.safe_load((CONF / "hydra" / "sweeper" / "leyden.yaml").read_text()) | {"seeds": 2, "folds": None}
    OmegaConf.save({"hydra": {"sweeper": node}}, Path("runs", folder, "multirun.yaml"))
    for job in range(6):
        value = [0.7, 0.9, 0.8][job // 2] + job / 1000
        overrides = [f"optimizer.lr={job // 2}", f"seed={job % 2}"]
        metrics = {"val/accuracy": value, "test/accuracy": value}
        make(f"{folder}/{job}", seed=job % 2, lr=job // 2, overrides=overrides, metrics=metrics)


def test_a_sweep_stands_for_its_best_trial(workdir: Path, capsys: pytest.CaptureFixture):
    sweep("x/20260101-000000-abcd")
    import optuna

    from leyden.sweep.directory import Sweep
    from leyden.sweep.settings import Objective

    study = Sweep(Path("runs/x/20260101-000000-abcd")).begin(
        [Objective("val/accuracy", "maximize")], [["seed=0"], ["seed=1"]]
    )
    for value in (0.7, 0.9, 0.8):
        study.add_trial(optuna.create_trial(value=value))
    assert compare("abcd:0", "abcd", "--metric", "test/accuracy", "--save", "found.csv") == 0
    assert [float(row["mean"]) for row in rows()] == pytest.approx([0.7005, 0.9025])
    assert "abcd: trial 1, the best of 3" in capsys.readouterr().out
    assert compare("last:2", "abcd:0", "--metric", "test/accuracy", "--save", "found.csv") == 0
    assert [float(row["mean"]) for row in rows()] == pytest.approx([0.8045, 0.7005])
    capsys.readouterr()
    assert compare("abcd:7") == REQUEST
    assert "has no runs of a trial 7; it has those of 0, 1, 2" in capsys.readouterr().err


def test_the_sweep_of_another_sweeper_has_no_trials(workdir: Path, capsys: pytest.CaptureFixture):
    make("x/20260101-000000-abcd/0", metrics={"val/accuracy": 0.7})
    node = {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"}
    OmegaConf.save({"hydra": {"sweeper": node}}, Path("runs/x/20260101-000000-abcd/multirun.yaml"))
    assert compare("abcd") == REQUEST
    assert "abcd has no trials, since Hydra's sweeper" in capsys.readouterr().err
    assert compare("x/20260101-000000-abcd/*", "--metric", "val/accuracy", "--save", "found.csv") == 0
    assert [float(row["mean"]) for row in rows()] == [0.7]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"sha256": "others"}, "and no run of a did on the same data; --force"),
        ({"data": "mnist"}, "measured test/accuracy on mnist"),
        ({"state": "interrupted"}, "x/0 is interrupted: leyden resume x/0 finishes it; --force"),
        ({"metrics": {"val/accuracy": 0.9}}, "no run of x has logged test/accuracy; did you mean val/accuracy?"),
        ({"metrics": {"test/accuracy": float("nan")}}, "x/0 of x ended with test/accuracy=nan; --force"),
        ({"state": "failed"}, "x: no run has a result (1 failed)"),
    ],
)
def test_what_cannot_be_compared_is_refused(seeds: Path, capsys: pytest.CaptureFixture, other: dict, said: str):
    make("x/0", **({"metrics": {"test/accuracy": 0.95}} | other))
    assert compare("a", "x", "--metric", "test/accuracy") == REQUEST
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: no such run in runs"),
        (["a", "a"], "two groups have the same name"),
        (["a", "x=a/0,a/1"], "a/0 is in both a and x"),
        (["a/0", "x=a/0", "--samples"], "a/0 is in both a/0 and x"),
        (["a", "b", "--metric", "val/accuracy:up"], "write val/accuracy:higher or val/accuracy:lower"),
        (["a", ""], "'' does not say what to compare"),
        (["a", "x="], "'x=' does not say what to compare"),
        (["a", "b,"], "'b,' does not say what to compare"),
        (["a", "=b"], "'=b' does not say what to compare"),
        (["a,b"], "mixes runs of different configs: optimizer.lr is 0.1 in a/0 and 0.2 in b/0"),
        (["a", "b", "--metric", "test/thing"], "is more of it better? write test/thing:higher or test/thing:lower"),
        (["a", "b", "--metric", "test/acuracy"], "did you mean test/accuracy?"),
        (["a", "b", "--save", "x.doc"], "should end in .md or .tex or .csv or .png or .pdf or .svg"),
        (["a", "b", "--save", "no/x.md"], "there is no folder no"),
        (["a:3"], "is not a sweep"),
        (["a", "b/0", "--samples"], "a is 5 runs: name one"),
        (["a/0", "b/0", "--samples"], "leyden evaluate a/0 --save-predictions"),
    ],
)
def test_what_is_asked_wrongly_is_refused(seeds: Path, capsys: pytest.CaptureFixture, words: list[str], said: str):
    assert compare(*words) == REQUEST
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_force_compares_and_says_what_it_went_over(seeds: Path, capsys: pytest.CaptureFixture):
    for seed in range(3):
        make(f"x/{seed}", seed=seed, sha256="others", metrics={"test/accuracy": 0.95 + seed / 100})
    assert compare("a", "x", "--metric", "test/accuracy", "--force") == 0
    out = capsys.readouterr().out
    assert "forced: x/0 of x measured test/accuracy on digits" in out
    assert "x is better than a by" in out
    assert "(Welch t, n = 5 seeds and 3 seeds)" in out
    for seed in range(3, 5):
        make(f"x/{seed}", seed=seed, sha256="others", metrics={"test/accuracy": 0.95})
    assert compare("a", "x", "--metric", "test/accuracy", "--force") == 0
    assert "(Welch t, n = 5 seeds and 5 seeds)" in capsys.readouterr().out  # seeds of other data do not pair


def test_a_seed_of_several_runs_pairs_with_none(seeds: Path, capsys: pytest.CaptureFixture):
    make("b/again", seed=4, lr=0.3, metrics={"test/accuracy": 0.9})
    assert compare("a", "b", "--metric", "test/accuracy", "--force") == 0
    assert "(Welch t, n = 5 seeds and 6 runs)" in capsys.readouterr().out
    make("a/again", seed=4, lr=0.3, metrics={"test/accuracy": 0.9})
    assert compare("a", "b", "--metric", "test/accuracy", "--force") == 0
    assert "(Welch t, n = 6 runs and 6 runs)" in capsys.readouterr().out


def test_failed_and_pruned_runs_and_older_ones_of_a_seed_are_left_out_and_counted(
    seeds: Path, capsys: pytest.CaptureFixture
):
    make("a/5", seed=5, state="failed")
    make("a/6", seed=6, state="pruned", metrics={"test/accuracy": 0.1})
    make("a/again", seed=4, metrics={"test/accuracy": A[4]})
    assert compare("a", "--metric", "test/accuracy", "--save", "found.csv") == 0
    assert rows()[0]["n"] == "5"
    out = capsys.readouterr().out
    assert "a: left out: 1 failed, 1 pruned" in out
    assert "a: 1 older runs of the same seed are left out" in out


def test_said_directions_and_those_of_a_config_count(seeds: Path, capsys: pytest.CaptureFixture):
    assert compare("a", "b", "--metric", "test/thing:lower") == 0
    assert "b is worse than a" in capsys.readouterr().out
    for path in Path("runs").glob("*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["raw"]["checkpoint"] = {"monitor": "val/thing", "mode": "max"}
        path.write_text(json.dumps(manifest))
    assert compare("a", "b", "--metric", "test/thing") == 0
    assert "b is better than a" in capsys.readouterr().out


def test_groups_chosen_by_different_metrics_must_be_told_what_to_compare(seeds: Path, capsys: pytest.CaptureFixture):
    make("x/0", monitor="val/loss", metrics={"test/loss": 0.1})
    assert compare("a", "x") == REQUEST
    assert "a monitors accuracy, and x loss: choose what to compare" in capsys.readouterr().err


def test_names_are_no_formulas(workdir: Path):
    for number in range(2):
        for name in "ab":
            make(f"{name}/{number}", data=f"data{number}", metrics={"test/accuracy": 0.5})
    assert compare("$^$=a", "_b=b", "--metric", "test/accuracy", "--save", "f.svg") == 0
    text = Path("f.svg").read_text()
    for legend in ("$^$", " _b"):
        assert f"<!-- {legend} -->" in text
