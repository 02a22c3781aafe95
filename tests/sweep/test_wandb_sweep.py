"""W&B's server and agents run sweeps of leyden's runs, and W&B shows the runs of leyden's sweeps as a group."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.cli import main
from leyden.run.find import list_runs
from leyden.sweep.grammar import read
from leyden.sweep.space import Axis
from leyden.sweep.wandb import parameter
from support import wandb_server
from support.processes import cli

TPE = ["hydra.sweeper.sampler=tpe", "hydra.sweeper.n_trials=20"]
TINY = ["data.limit=64", "test=false"]


def axis(text: str) -> Axis:
    [found] = read({}, [text]).axes
    return found


def parsed(text: str) -> Any:
    return OverridesParser.create().parse_override(f"a={text}").value()


def arrives(parameter: dict, value: Any) -> Any:
    """What a run's config gets when W&B has chosen a value of a parameter of the file."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args  # 3 s

    sweep = yaml.safe_load(yaml.safe_dump({"a": parameter}))
    if "values" in parameter:
        value = sweep["a"]["values"][parameter["values"].index(value)]
    command = {"args": {"a": {"value": json.loads(json.dumps(wandb_server.as_json(value)))}}}
    [argument] = create_sweep_command_args(command)["args_no_hyphens"]
    return parsed(argument.removeprefix("a="))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=4,8", {"values": [4, 8]}),
        ("a=true,null,adamw", {"values": [True, "null", "adamw"]}),
        ("a=1.0,0.5", {"values": ["1.0", 0.5]}),
        ("a='x, y',[1,2]", {"values": ["'x, y'", "[1,2]"]}),
        ("a=range(2,6)", {"distribution": "int_uniform", "min": 2, "max": 5}),
        ("a=range(2,3)", {"values": [2]}),
        ("a=range(1,9,3)", {"values": [1, 4, 7]}),
        ("a=range(0.5,1,0.2)", {"values": [0.5, 0.7, 0.9]}),
        ("a=tag(log,range(1,9))", {"distribution": "q_log_uniform_values", "q": 1, "min": 1, "max": 8}),
        ("a=interval(0,1)", {"distribution": "uniform", "min": 0.0, "max": 1.0}),
        ("a=tag(log,interval(1e-5,0.1))", {"distribution": "log_uniform_values", "min": 1e-5, "max": 0.1}),
        ("a=int(interval(1,4))", {"distribution": "int_uniform", "min": 1, "max": 4}),
        ("a=tag(log,int(interval(1,99)))", {"distribution": "q_log_uniform_values", "q": 1, "min": 1, "max": 99}),
    ],
)
def test_an_axis_in_the_words_of_wandb(text, expected):
    assert parameter(axis(text), is_grid=False) == expected


def test_an_axis_of_a_grid_is_its_values():
    assert parameter(axis("a=range(2,6)"), is_grid=True) == {"values": [2, 3, 4, 5]}


quoted = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).map(
    lambda text: QuotedString(text, Quote.single).with_quotes()
)
numbers = st.integers(-(2**53), 2**53) | st.floats()
written_values = quoted | numbers.map(str) | st.sampled_from(["true", "null", "[1,{a: 2}]", "sgd"])
choices = st.lists(written_values, min_size=2, unique_by=lambda text: repr(parsed(text)))


@settings(max_examples=60, deadline=None)
@given(choices)
def test_every_choice_arrives_as_it_was_written(texts):
    values = parameter(axis(f"a={','.join(texts)}"), is_grid=False)["values"]
    came = [arrives({"values": values}, value) for value in values]
    assert [repr(value) for value in came] == [repr(parsed(text)) for text in texts]


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-300, 1e300), st.floats(1e-300, 1e300), st.floats(0, 1), st.booleans())
def test_every_number_of_an_interval_arrives(one, other, share, is_log):
    low, high = sorted((one, other))
    if low == high:
        return
    text = f"interval({low},{high})"
    found = parameter(axis(f"a={f'tag(log,{text})' if is_log else text}"), is_grid=False)
    assert (found["min"], found["max"]) == (low, high)
    value = math.exp(math.log(low) + share * (math.log(high) - math.log(low))) if is_log else low + share * (high - low)
    assert arrives(found, value) == value


def written(capsys: pytest.CaptureFixture, *arguments: str) -> dict:
    assert main(["wandb-sweep", *arguments]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_a_file_of_conf_sweep_becomes_a_sweep_of_wandb(workdir: Path, capsys):
    (workdir / "conf" / "sweep").mkdir(parents=True)
    (workdir / "conf" / "sweep" / "mine.yaml").write_text(
        "# @package hydra.sweeper\n"
        "sampler: tpe\nn_trials: 20\npruner: asha\n"
        "params:\n  optimizer.lr: tag(log,interval(1e-4,0.1))\n  model.net.width: [4, 8]\n"
    )
    found = written(
        capsys,
        "-m",
        "sweep=mine",
        "data.limit=64",
        "+trainer.max_steps=3,5",
        "logger.wandb.project=mine",
        "logger=wandb",
    )
    assert found == {
        "name": "digits_convnet",
        "project": "mine",
        "program": "leyden",
        "command": [
            *["${env}", "leyden", "train", "data.limit=64", "logger.wandb.project=mine", "logger=wandb"],
            *["+trainer.max_steps=3", "${args_no_hyphens}"],
        ],
        "method": "bayes",
        "metric": {"name": "val/accuracy", "goal": "maximize"},
        "parameters": {
            "optimizer.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 0.1},
            "model.net.width": {"values": [4, 8]},
            "trainer.max_steps": {"values": [3, 5]},
        },
        "early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 3},
        "run_cap": 20,
    }


def test_seeds_and_folds_are_parameters_of_a_grid(workdir: Path, capsys):
    found = written(capsys, "optimizer=sgd,adamw", "seeds=[5,7]", "folds=3")
    assert found["method"] == "grid"
    assert found["command"][3:] == ["logger=wandb", "++data.folds=3", "++data.fold=0", "${args_no_hyphens}"]
    assert found["parameters"] == {
        "optimizer": {"values": ["sgd", "adamw"]},
        "data.fold": {"values": [0, 1, 2]},
        "seed": {"values": [5, 7]},
    }


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["model.net.width=4"], "nothing is varied: write a key with several values"),
        (["--cfg", "seed=1,2"], "leyden wandb-sweep: unrecognized arguments: --cfg"),
        (["seed=1,2", "hydra/launcher=slurm"], "hydra/launcher=slurm: W&B chooses the points"),
        (["seed=1,2", "accelerator=slurm"], "accelerator=slurm: W&B chooses the points"),
        (["seed=1,2", "logger=tensorboard"], r"write logger=\[wandb,tensorboard\]"),
        (["model.net.wdth=1,2"], "model.net.wdth: there is no such key; did you mean model.net.width?"),
        (["model.net.width=4,-8"], "job 1 .*model.net.width=-8"),
        (["seed=1,2", "hydra.sweeper.sampler=cmaes", "hydra.sweeper.n_trials=9"], "sampler=cmaes: W&B has grid"),
        (["seed=1,2", "hydra.sweeper.pruner=median"], "pruner=median: W&B stops runs by hyperband"),
        (["seed=1,2", "hydra.sweeper.retries=3"], "hydra.sweeper.retries=3: a sweep on W&B has no such option"),
        (
            ["seed=1,2", "hydra.sweeper.objective=[val/loss,val/f1]", "hydra.sweeper.direction=minimize"],
            "has 2 metrics",
        ),
        (["seeds=2", "model.net.width=4,8", *TPE], "seeds and folds: W&B does not average runs"),
        (["seeds=2", "model.net.width=4,8", "hydra.sweeper.n_trials=1"], "seeds and folds: W&B does not average runs"),
        (
            [
                "+hydra.sweeper.params={optimizer: 'sgd,adamw', optimizer.momentum: {when: 'optimizer=sgd', values: '0,0.9'}}"
            ],
            "optimizer.momentum: on W&B every run has every key, not only those with optimizer=sgd",
        ),
        (["hydra/sweeper=basic", "seed=1,2"], "hydra/sweeper=basic: W&B chooses the points"),
    ],
)
def test_what_wandb_cannot_say_is_refused(workdir: Path, capsys, arguments, reason):
    assert main(["wandb-sweep", *arguments]) == 2
    shown = capsys.readouterr()
    assert re.search(reason, shown.err), shown.err
    assert not shown.out


@pytest.fixture
def shell(server: wandb_server.Server, monkeypatch: pytest.MonkeyPatch):
    """Commands as a person types them."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_the_agent_of_wandb_trains_a_sweep(server: wandb_server.Server, shell, monkeypatch, capsys):
    server.stops = lambda run: run.name == "run0" and any("val/accuracy" in line for line in run.history)
    monkeypatch.setenv("WANDB_AGENT_MAX_INITIAL_FAILURES", "1")  # it ends after a failure, which a stop is not
    axes = ["trainer.max_epochs=100000,1", "+trainer.limit_val_batches=choice(2)", "optimizer=choice(sgd)"]
    Path("sweep.yaml").write_text(
        shell("leyden", "wandb-sweep", *TINY, *axes, "logger=wandb", "logger.wandb.mode=online")
    )
    assert "wandb agent me/leyden/sweep0" in shell("wandb", "sweep", "sweep.yaml")
    hasty = "from wandb import wandb_agent as a; a.Agent.POLL_INTERVAL = 0.2; from wandb.cli.cli import cli; cli()"
    shell(sys.executable, "-c", hasty, "agent", "me/leyden/sweep0")

    runs = {json.loads((run.path / "wandb.json").read_text())["id"]: run for run in list_runs()}
    assert list(runs) == list(server.runs) == ["run0", "run1"]
    for name, run in runs.items():
        there = server.runs[name]
        assert (there.fields["sweep"], there.project) == ("sweep0", "leyden")
        point = {
            key: value["value"] for key, value in there.config.items() if key in server.sweeps["sweep0"].given[name]
        }
        assert point == server.sweeps["sweep0"].given[name]
        config = run.config
        assert config["trainer"]["max_epochs"] == point["trainer.max_epochs"]
        assert config["trainer"]["limit_val_batches"] == 2
        assert config["optimizer"]["_target_"] == "torch.optim.SGD"
    stopped, finished = runs["run0"], runs["run1"]
    assert (stopped.status["state"], server.runs["run0"].exit_code) == ("preempted", 143)
    assert stopped.checkpoints()
    assert (finished.status["state"], server.runs["run1"].exit_code) == ("finished", 0)
    [(step, value)] = server.values("run1", "val/accuracy")
    assert (step, value) == (finished.status["step"], finished.status["metrics"]["val/accuracy"])

    config = (stopped.path / "config.yaml").read_text()
    last = f"max_epochs: {stopped.status['epoch'] + 1}"
    (stopped.path / "config.yaml").write_text(config.replace("max_epochs: 100000", last))
    assert cli("resume", str(stopped.path)) == 0  # without the agent, in the same run on W&B
    assert list(server.runs) == ["run0", "run1"]
    assert server.runs["run0"].exit_code == 0


@pytest.mark.slow
def test_the_runs_of_a_sweep_are_a_group_on_wandb(server: wandb_server.Server):
    arguments = ["trainer.max_epochs=1", "seeds=2", "logger=wandb", "logger.wandb.tags=[a]"]
    assert cli("train", "-m", *TINY, *arguments) == 0
    runs = list_runs()
    assert len(runs) == len(server.runs) == 2
    for run in runs:
        there = server.runs[json.loads((run.path / "wandb.json").read_text())["id"]]
        job = int(run.path.name)
        name = run.path.parent.name
        assert (there.fields["groupName"], there.fields["jobType"]) == (name, "job")
        assert there.fields["tags"] == ["a", f"sweep:{name}", "trial:0", f"job:{job}", f"seed:{job}"]
        assert there.config["sweep"]["value"] == {"name": name, "trial": 0, "job": job, "seed": job}
        assert run.config["seed"] == job
