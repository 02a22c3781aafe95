"""A sweep shows its progress and the results of its trials: on the terminal, as a page, as an experiment."""

import json
import math
import re
import subprocess
import sys
import warnings
from datetime import datetime, timedelta
from types import SimpleNamespace

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.trial import TrialState, create_trial
from plotly.offline import get_plotlyjs
from rich.console import Console

from leyden.cli import main
from leyden.config.compose import compose
from leyden.config.locations import CONF
from leyden.loggers.metrics_file import append
from leyden.run.directory import Run
from leyden.sweep import grammar, plots, report
from leyden.sweep.directory import Sweep
from leyden.sweep.jobs import Job
from leyden.sweep.live import Overview
from leyden.sweep.settings import Objective
from leyden.sweep.table import eta, short_names

ACCURACY = [Objective("val/accuracy", "maximize")]
TWO = [*ACCURACY, Objective("val/loss", "minimize")]


def begin(path, arguments=(), objectives=ACCURACY, jobs=([],), total=10, **settings):
    path.mkdir(parents=True)
    sweeper = OmegaConf.merge(OmegaConf.load(CONF / "hydra/sweeper/leyden.yaml"), {"sampler": "tpe", "n_trials": total})
    hydra = {
        "sweeper": OmegaConf.merge(sweeper, settings),
        "overrides": {"hydra": ["hydra.sweeper.sampler=tpe", "hydra.mode=MULTIRUN"], "task": list(arguments)},
    }
    OmegaConf.save(OmegaConf.create({"hydra": hydra}), path / "multirun.yaml")
    sweep = Sweep(path)
    sweep.begin(list(objectives), list(jobs)).set_user_attr("total", total)
    return sweep


def try_point(sweep, arguments, point, values=None, state=None, curve=(), runs=True, **facts):
    """Add a trial, and its jobs' runs, as a search does."""
    found = grammar.read({}, arguments)
    sweep.study.enqueue_trial(found.convert(point))
    trial = sweep.study.ask()
    taken = found.suggest(trial)
    for step, value in enumerate(curve if len(sweep.objectives) == 1 else (), start=1):
        trial.report(value, step)
    for key, value in facts.items():
        trial.set_user_attr(key, value)
    for number, more in zip(sweep.job_numbers(trial.number), sweep.jobs, strict=True) if runs else ():
        composition = compose([*found.overrides(taken), *more])
        run = Run.create(composition, sweep.path / str(number), job=number)
        for step, value in enumerate(curve, start=1):
            append(run.path / "metrics.jsonl", {"step": step, "train/loss": 1.0})
            append(run.path / "metrics.jsonl", {"step": step, "val/accuracy": value, "val/loss": 1 - value})
        run.set_status("finished")
    if values or state:
        sweep.study.tell(trial, values, state)
    return trial.number


def ids_of_plots(page):
    """The plots of a page."""
    return re.findall(r'<div id="([\w-]+)" class="plotly', page)


def fill(sweep, count, **options):
    """Add finished trials of a width and a rate, the later the better."""
    arguments = ["model.net.width=4,8,12", "optimizer.lr=tag(log,interval(1e-4,1e-1))"]
    for k in range(count):
        point = {"model.net.width": (4, 8, 12)[k % 3], "optimizer.lr": 1e-4 * 1.5**k}
        value = 0.5 + 0.03 * k
        values = [value, 1 - value / 2][: len(sweep.objectives)]
        try_point(sweep, arguments, point, values, runs=False, **options)
    return sweep


@pytest.fixture
def project(workdir):
    (workdir / "experiments").mkdir()
    (workdir / "conf").mkdir()
    (workdir / "conf/experiment").symlink_to("../experiments")
    stopping = "defaults: [override /model: convnet, override /data: digits, override /callbacks: early_stopping]"
    (workdir / "experiments/stopping.yaml").write_text(f"# @package _global_\n{stopping}\n")
    return workdir


@pytest.mark.parametrize(
    ("arguments", "point"),
    [
        (["experiment=cnn_digits", "model.net.width=4,8", "optimizer.lr=interval(1e-4,1)"], {"model.net.width": 8, "optimizer.lr": 1e-3}),
        (["experiment=stopping", "callbacks=[ema]", "data.image_shape.2=8,8.0"], {"data.image_shape.2": 8}),
        (["experiment=cnn_digits", "optimizer=adamw,sgd", "callbacks=[ema]", "+trainer.max_steps=5,7"], {"optimizer": "sgd", "+trainer.max_steps": 7}),
        (["experiment=cnn_digits,gru_japanese_vowels", "seed=1,2", "name=mine"], {"experiment": "gru_japanese_vowels", "seed": 2}),
        (["data=digits", "model=convnet", "++trainer.limit_train_batches=0.5,1.0", "logger=tensorboard", "expect=null"], {"++trainer.limit_train_batches": 0.5}),
        (["data=fashion_mnist", "model=resnet9,convnet", "schedule=cosine", "callbacks=early_stopping", "data.crop=1,2"], {"model": "resnet9", "data.crop": 2}),
        (["experiment=pydocs_lstm", "callbacks=samples,[samples,ema]", "~expect"], {"callbacks": "[samples,ema]"}),
    ],
)  # fmt: skip
def test_the_best_point_is_an_experiment_with_the_config_of_its_run(project, arguments, point):
    sweep = begin(project / "runs/digits/one", arguments)
    point = {key.lstrip("+"): value for key, value in point.items()}
    try_point(sweep, arguments, point, [0.9])
    paths = report.write(sweep)
    assert sweep.path / "best.yaml" in paths
    text = (sweep.path / "best.yaml").read_text()
    (project / "experiments/mine.yaml").write_text(text)
    command = re.search(r"experiments/NAME.yaml; leyden train (.*)", text)
    again = compose([word.strip("'") for word in command[1].replace("NAME", "mine").split()]).config
    assert again | {"name": ""} == Run(sweep.path / "0").config | {"name": ""}


def test_the_best_point_of_several_seeds_leaves_the_seed_open(project):
    arguments = ["experiment=cnn_digits", "model.net.width=4,8"]
    sweep = begin(project / "runs/digits/one", arguments, jobs=[["seed=3"], ["seed=4"]])
    try_point(sweep, arguments, {"model.net.width": 8}, [0.9], seeds=2, std=[0.01])
    for run in sweep.runs().values():  # words that make a sweep
        run.update_manifest(overrides=["sweep=wide", "seeds=2", *run.manifest["overrides"]])
    report.write(sweep)
    text = (sweep.path / "best.yaml").read_text()
    assert "# Trial 0 of the sweep digits/one: val/accuracy 0.9 ± 0.01 (mean of 2 runs).\n" in text
    assert "#   leyden train experiment=cnn_digits model.net.width=8\n" in text
    (project / "experiments/mine.yaml").write_text(text)
    ours = compose(["experiment=mine", "seed=4"]).config
    assert ours | {"name": ""} == Run(sweep.path / "1").config | {"name": ""}


def test_several_objectives_have_an_experiment_for_each_trial_of_the_front(workdir):
    arguments = ["experiment=cnn_digits", "model.net.width=4,8,12"]
    sweep = begin(workdir / "runs/digits/one", arguments, TWO)
    (sweep.path / "best-7.yaml").write_text("of an earlier front")
    for width, values in ((4, [0.8, 0.1]), (8, [0.9, 0.2]), (12, [0.8, 0.3])):
        try_point(sweep, arguments, {"model.net.width": width}, values, curve=[0.1, 0.5, values[0]])
    page, *best_points = report.write(sweep)
    assert {path.name for path in best_points} == {"best-0.yaml", "best-1.yaml"}
    assert {"front", "curves-val-loss"} <= set(ids_of_plots(page.read_text()))
    assert sorted(path.name for path in sweep.path.glob("best*.yaml")) == ["best-0.yaml", "best-1.yaml"]
    curves = next(plot for plot in plots.plots(sweep) if plot.name == "curves-val-loss")
    assert [trial.intermediate_values for trial in curves.study.trials][1] == pytest.approx({1: 0.9, 2: 0.5, 3: 0.1})


def test_the_page_is_one_file_that_needs_nothing_else(workdir, capsys):
    sweep = fill(begin(workdir / "runs/digits/<one>"), 12)
    sweep.study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"reason": "job 3: <script>"}))
    (path,) = report.write(sweep)
    assert path == sweep.path / "sweep.html"
    page = path.read_text()
    assert "leyden train -m hydra.sweeper.sampler=tpe" in page
    body = page[page.index("<body>") :]
    assert page.count(get_plotlyjs()) == 1
    assert not re.findall(r"(?:src|href)=\"?(?:https?:)?//|@import|url\(", page.replace(get_plotlyjs(), ""))
    assert "job 3: &lt;script&gt;" in body
    assert body.count("<tr>") == body.count("</tr>") == 1 + 13 + 2 + 5  # title, trials, best, facts
    assert ids_of_plots(body) == ["history", "importances", "parallel", "slices", "contours", "timeline"]
    assert body.count('"format": "svg", "filename": "') == 6  # each can be saved
    assert capsys.readouterr() == ("", "")


MIXED = (True, "null", 1, 2.5, "[1,2]", "$^$", "a_$x$_{b")


def made(*values, state=TrialState.COMPLETE, curve=(), **point):
    """Make a trial: keys a, b vary from 0 to 1, c among what is mixed, d between two."""
    number, choice = optuna.distributions.FloatDistribution(0, 1), optuna.distributions.CategoricalDistribution
    kinds = {"a": number, "b": number, "c": choice(MIXED), "d": choice(("sgd", "adam"))}
    return create_trial(
        state=state,
        values=values or None,
        params=point,
        distributions={key: kinds[key] for key in point},
        intermediate_values=dict(enumerate(curve, start=1)),
    )


def conditional(k):
    return {"d": "sgd", "a": k / 10} if k % 2 else {"d": "adam"}


SEEN = {"timeline", "history"}
ODD = {  # studies that a plot could stumble over, and the plots that make sense of them
    "none": (1, [], set()),
    "one": (1, [made(0.5, a=0.5)], {"timeline"}),
    "no keys": (1, [made(0.5), made(0.6)], SEEN),
    "failed": (1, [made(state=TrialState.FAIL, a=0.5)] * 3, {"timeline"}),
    "pruned": (1, [made(state=TrialState.PRUNED, a=0.5, curve=(0.5, math.nan))] * 3, {"timeline", "curves"}),
    "one value": (1, [made(0.5, a=k / 20, b=k % 3 / 3) for k in range(20)], {*SEEN, "parallel", "slices", "contours"}),
    "one point": (1, [made(k / 20, a=0.5, b=0.5) for k in range(20)], SEEN),
    "infinite": (1, [made(math.inf, a=0.1), made(1.0, a=0.2), made(2.0, a=0.2)], SEEN),
    "mixed": (
        1,
        [made(float(k), a=k / 20, c=MIXED[k % 7], curve=(0.1, float(k))) for k in range(20)],
        {*SEEN, "parallel", "slices", "contours", "curves", "importances"},
    ),
    "conditional": (1, [made(float(k), **conditional(k)) for k in range(10)], {*SEEN, "slices"}),
    "three": (3, [made(k / 9, k % 3, 1.0, a=k / 9) for k in range(9)], {*SEEN, "slices", "front"}),
    "three, one done": (3, [made(0.1, 0.2, 0.3)], {"timeline", "front"}),
}


@pytest.mark.parametrize(("count", "trials", "expected"), ODD.values(), ids=ODD)
def test_a_report_is_written_of_anything(workdir, count, trials, expected, capfd):
    sweep = begin(workdir / "runs/digits/one", objectives=[*TWO, Objective("perf/x", "minimize")][:count])
    sweep.study.add_trials(trials)
    sweep.study.ask()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["show", str(sweep.path)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert f"{len(trials)} of 10 trials" in out
    page = (sweep.path / "sweep.html").read_text()
    assert {name.partition("-")[0] for name in ids_of_plots(page)} == expected


def test_a_sweep_is_shown_with_its_best_its_failures_and_what_is_left(workdir, capsys):
    arguments = ["experiment=cnn_digits", "model.net.width=4,8,12"]
    sweep = begin(workdir / "runs/digits/20260101-abcd", arguments, total=6)
    for width, value in ((4, 0.7), (12, 0.93), (8, 0.8)):
        try_point(sweep, arguments, {"model.net.width": width}, [value])
    try_point(sweep, arguments, {"model.net.width": 8}, state=TrialState.PRUNED, curve=[0.1, 0.2], runs=False)
    try_point(sweep, arguments, {"model.net.width": 8}, state=TrialState.FAIL, runs=False, reason="val/accuracy is nan")
    assert main(["show", "20260101"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "sweep digits/20260101-abcd  5 of 6 trials  1 pruned  1 failed  best 0.93 (trial 1)"
    assert lines[1].split() == ["trial", "val/accuracy", "state", "took", "width"]
    assert [line.split()[0] for line in lines[2:7]] == ["1", "2", "0", "3", "4"]
    assert lines[7:10] == [
        "trial 1 again: leyden train experiment=cnn_digits model.net.width=12",
        "trial 4 failed: val/accuracy is nan",
        "1 trials still to run: leyden resume digits/20260101-abcd",
    ]
    assert lines[10] == "written: runs/digits/20260101-abcd/sweep.html, runs/digits/20260101-abcd/best.yaml"

    assert main(["show", "digits/20260101-abcd", "--json"]) == 0
    first, *_, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["trial"], first["values"], first["point"]) == (1, {"val/accuracy": 0.93}, {"model.net.width": 12})
    assert first["runs"] == [str(sweep.path / "1")]
    assert (last["state"], last["reason"]) == ("failed", "val/accuracy is nan")

    Run.create(compose(["experiment=cnn_digits"]), workdir / "runs/digits/20260102-ffff")
    assert main(["show", "digits"]) == 2
    assert "digits is part of the names of 4 runs" in capsys.readouterr().err
    assert main(["show", "20260101-abcd/2"]) == 0
    assert capsys.readouterr().out.startswith("digits/20260101-abcd/2  finished")
    assert main(["show", "20260101-abcd/2", "--json"]) == 2


def test_choices_are_no_formulas_and_what_nobody_works_on_is_interrupted(workdir):
    sweep = begin(workdir / "runs/digits/odd")
    sweep.study.add_trials([made(k / 10, a=k / 9, c=("$^$", "a_$x$_{b")[k % 2]) for k in range(4)])
    sweep.study.ask()
    path = report.write(sweep)[0]
    page = path.read_text()
    assert "slices" in ids_of_plots(page)
    assert "4 of 10 trials: 4 finished, 1 interrupted" in page
    assert '<span class="interrupted">interrupted</span>' in page
    with sweep.lock():
        report.write(sweep)
    assert "4 finished, 1 running" in path.read_text()


def test_sweeps_are_listed(workdir, capsys):
    assert main(["ls", "--sweep"]) == 0
    assert capsys.readouterr().out == "there are no sweeps in runs; leyden train -m KEY=VALUE,VALUE makes one\n"
    done = fill(begin(workdir / "runs/digits/1done", total=3), 3)
    fill(begin(workdir / "runs/digits/2left", objectives=TWO), 2)
    (workdir / "runs/digits/3other").mkdir()
    (workdir / "runs/digits/3other/multirun.yaml").write_text(
        "hydra: {sweeper: {_target_: hydra._internal.BasicSweeper}}"
    )
    (workdir / "runs/digits/4broken").mkdir()
    (workdir / "runs/digits/4broken/multirun.yaml").write_text("{")
    with begin(workdir / "runs/digits/5busy").lock():
        assert main(["ls", "--sweep"]) == 0
        title, *rows = (line.rstrip() for line in capsys.readouterr().out.splitlines())
        assert title.split() == ["sweep", "state", "trials", "pruned", "failed", "best"]
        assert rows[0].split() == [
            "digits/1done",
            "finished",
            "3",
            "of",
            "3",
            "val/accuracy",
            "0.56",
            "width=12",
            "lr=0.000225",
        ]
        assert rows[1].split() == [
            "digits/2left",
            "interrupted",
            "2",
            "of",
            "10",
            "val/accuracy",
            "0.53",
            "val/loss",
            "0.735",
            "width=8",
            "lr=0.00015",
        ]
        assert rows[2].split() == ["digits/3other", "0", "runs"]
        assert rows[3].startswith("digits/4broken  broken")
        assert rows[4].split() == ["digits/5busy", "running", "0", "of", "10"]
    assert main(["ls", "--sweep", "1done", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["path"], row["trials"], row["total"]) == (str(done.path), 3, 3)
    assert row["best"][0]["trial"] == 2
    assert main(["ls", "--sweep", "nothing"]) == 2


def test_runs_are_listed_without_optuna(workdir):
    code = "import sys; from leyden.cli import main; main(['ls']); sys.exit('optuna' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=workdir)


@pytest.mark.parametrize("width", [60, 160])
def test_the_overview_fits_the_terminal(workdir, width):
    sweep = fill(begin(workdir / "runs/digits/one", jobs=[["seed=0"], ["seed=1"]], total=20), 6, std=[0.02])
    arguments = ["model.net.width=4,8,12", "optimizer.lr=tag(log,interval(1e-4,1e-1))"]
    trial = try_point(sweep, arguments, {"model.net.width": 8, "optimizer.lr": 0.05}, curve=[0.1, 0.25], runs=False)
    try_point(
        sweep, arguments, {"model.net.width": 8, "optimizer.lr": 0.04}, state=TrialState.FAIL, runs=False, reason="NaN"
    )
    run = SimpleNamespace(status={"state": "running", "epoch": 3, "step": 12})
    at_work = {2 * trial + 1: Job(2 * trial + 1, [], run)}
    overview = Overview(sweep, 20, at_work, datetime.now() - timedelta(hours=1))
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(overview)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert all(len(line) <= width for line in lines)
    text = " ".join(" ".join(lines).split())
    assert text.startswith("sweep digits/one 7 of 20 trials 1 running 1 failed best 0.65 ± 0.02 (trial 5)")
    job = next(line for line in lines if "epoch 3" in line)
    assert job.split()[:6] == ["6", "0.25", "running", "epoch", "3", "seed=1"]
    best = lines[lines.index(job) + 1].split()
    assert best[:5] == ["5", "0.65", "±", "0.02", "finished"]
    assert best[5:] == (["12", "0.0007594"] if width > 100 else ["width=12", "lr=0.…"])
    assert len(lines) - lines.index(job) == 1 + 5 + 1
    assert lines[-1] == "trial 7 failed: NaN"


def test_the_time_left_is_that_of_trials_like_those_since_the_beginning():
    now = datetime.now()

    def trial(start, seconds):
        state = TrialState.COMPLETE if seconds else TrialState.RUNNING
        made = create_trial(state=state, value=1.0 if seconds else None)
        made.datetime_start = now + timedelta(seconds=start)
        made.datetime_complete = made.datetime_start + timedelta(seconds=seconds) if seconds else None
        return made

    before = trial(-5000, 4000)
    ended = [trial(-100, 40), trial(-100, 60)]
    at_work = [trial(-10, 0), trial(-20, 0)]
    begun = now - timedelta(seconds=200)
    assert eta([before], 10, begun) is None
    assert eta([before, *ended], 4, begun) == pytest.approx(50)
    assert eta([before, *ended, *at_work], 11, begun) == pytest.approx((8 * 50 - 30) / 2, abs=0.5)


def test_keys_are_told_by_their_shortest_endings():
    number = optuna.distributions.FloatDistribution(0, 1)
    keys = ("model.net.width", "opt.lr", "model.opt.lr", "lr_decay", "width_x")
    names = short_names(
        [create_trial(value=0.0, params=dict.fromkeys(keys, 0.5), distributions=dict.fromkeys(keys, number))]
    )
    assert names == {
        "model.net.width": "width",
        "opt.lr": "opt.lr",
        "model.opt.lr": "model.opt.lr",
        "lr_decay": "lr_decay",
        "width_x": "width_x",
    }
