"""A config of somebody else's runs no code, opens no file and keeps no command busy, whatever it holds.

Every input here would leave a canary, in the working directory or below it, if one of its parts were called.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from leyden.cli import main
from support.processes import cli

pytestmark = pytest.mark.usefixtures("undrawn")

CANARY = "canary"
TOUCH = f"touch {CANARY}"
PYTHON = f"open({CANARY!r}, 'w').close()"
SMALL = ("data.limit=64", "model.net.width=2", "trainer.max_epochs=1")

# targets that would run code, by what they would be given
CALLS = {
    "os.system": {"command": TOUCH},
    "posix.system": {"command": TOUCH},
    "subprocess.Popen": {"args": TOUCH, "shell": True},
    "subprocess.check_output": {"args": TOUCH, "shell": True},
    "builtins.eval": {"_args_": [PYTHON]},
    "builtins.exec": {"_args_": [PYTHON]},
    "builtins.open": {"file": CANARY, "mode": "w"},
    "pathlib.Path.touch": {"_args_": [CANARY]},
    "sympy.sympify": {"a": f"__import__('os').system({TOUCH!r})"},
    "timeit.timeit": {"stmt": PYTHON, "number": 1},
    "runpy.run_path": {"path_name": "evil.py"},
    "importlib.import_module": {"name": "evil"},
    "evil.Evil": {},
    "pickle.loads": {"_args_": [f"cos\nsystem\n(S'{TOUCH}'\ntR."]},
    "pandas.read_pickle": {"filepath_or_buffer": "evil.pkl"},
    "joblib.load": {"filename": "evil.pkl"},
    "numpy.load": {"file": "evil.pkl", "allow_pickle": True},
    "torch.load": {"f": "evil.pkl", "weights_only": False},
    "torch.hub.load": {"repo_or_dir": ".", "model": "evil", "source": "local"},
    "yaml.unsafe_load": {"_args_": [f"!!python/object/apply:os.system ['{TOUCH}']"]},
    "hydra.utils.call": {"config": {"_target_": "os.system", "command": TOUCH}},
    "hydra.utils.get_method": {"path": "evil.Evil"},
    "functools.partial": {"_args_": [{"_target_": "os.system", "command": TOUCH}]},
    "leyden.run.directory.subprocess.run": {"args": TOUCH, "shell": True},
    "leyden.run.directory.os.system": {"command": TOUCH},
    "leyden.cli.os.system": {"command": TOUCH},
    "leyden.commands.doctor.subprocess.run": {"args": TOUCH, "shell": True},
    "lightning.pytorch.callbacks.lambda_function.os.system": {"command": TOUCH},
    "optuna.samplers._cmaes.pickle.loads": {"_args_": [f"cos\nsystem\n(S'{TOUCH}'\ntR."]},
    "torchmetrics.utilities.imports.os.system": {"command": TOUCH},
    "hydra_plugins.evil.Evil": {},
}
# places in a config where something is built, and one inside each
HYDRA = ("hydra.callbacks.e", "hydra.launcher", "hydra.launcher.e", "hydra.sweeper", "hydra.sweeper.e")
HYDRA += (
    "hydra.sweeper.sampler",
    "hydra.sweeper.pruner",
    "hydra.sweeper.params.e",
    "hydra.sweeper.sampler.independent",
)
OWN = ("model", "model.net", "model.net.e", "data", "data.e", "optimizer", "schedule", "feature", "checkpoint")
OWN += ("callbacks.e", "callbacks.ema.e", "logger.e", "trainer", "trainer.strategy", "trainer.profiler", "expect", "e")


@pytest.fixture
def folder(workdir: Path) -> Iterator[Path]:
    """A working directory with somebody's module, pickle and plugin, that nothing may import or read."""
    for name in ("evil.py", "hubconf.py", "hydra_plugins/evil.py"):
        (workdir / name).parent.mkdir(exist_ok=True)
        (workdir / name).write_text(f"{PYTHON}\n\n\nclass Evil:\n    pass\n\n\ndef evil():\n    pass\n")
    (workdir / "evil.pkl").write_bytes(f"cos\nsystem\n(S'{TOUCH}'\ntR.".encode())
    script = workdir / "evil.sh"
    script.write_text(f"#!/bin/sh\n{TOUCH}\n")
    script.chmod(0o755)
    (workdir / "experiments").mkdir()
    (workdir / "conf").mkdir()
    (workdir / "conf" / "experiment").symlink_to("../experiments")
    yield workdir
    assert not (workdir / CANARY).exists()


def nested(path: str, node: object) -> dict:
    """A config with one node at a dotted path."""
    for part in reversed(path.split(".")):
        node = {part: node}
    assert isinstance(node, dict)
    return node


def experiment(folder: Path, config: dict) -> str:
    """Write somebody's experiment; return the override that takes it."""
    (folder / "experiments" / "theirs.yaml").write_text("# @package _global_\n" + yaml.safe_dump(config))
    return "experiment=theirs"


def assert_refused(capfd: pytest.CaptureFixture, *arguments: str) -> str:
    """A wrong request: a line or two, no traceback, and nothing was made."""
    assert main(list(arguments)) == 2
    err = capfd.readouterr().err
    assert err.startswith("leyden: ")
    assert "Traceback" not in err
    assert not Path("runs").exists()
    assert not Path(CANARY).exists()
    return err


@pytest.mark.parametrize("group", ["hydra.callbacks", "callbacks", "logger"])
def test_no_target_is_called(folder: Path, capfd: pytest.CaptureFixture, group: str):
    nodes = {f"e{place}": {"_target_": target, **CALLS[target]} for place, target in enumerate(CALLS)}
    err = assert_refused(capfd, "train", "-m", "seed=0", experiment(folder, nested(group, nodes)))
    for place, target in enumerate(CALLS):
        assert f"{group}.e{place}._target_={target}: " in err


@pytest.mark.parametrize("place", [*HYDRA, *OWN])
def test_no_place_builds_what_it_likes(folder: Path, capfd: pytest.CaptureFixture, place: str):
    err = assert_refused(capfd, "train", "-m", "seed=0", experiment(folder, nested(place, {"_target_": "evil.Evil"})))
    assert "evil.Evil" in err or place in ("callbacks.ema.e", "e", "expect", "hydra.launcher.e")  # no such keys


@pytest.mark.parametrize("command", ["train -m seed=0", "train", "check", "check -m", "wandb-sweep seed=0,1"])
def test_every_command_that_composes_refuses(folder: Path, capfd: pytest.CaptureFixture, command: str):
    for key in ("+hydra.callbacks.e", "hydra.sweeper.sampler", "+callbacks.e"):
        assert_refused(capfd, *command.split(), f"{key}={{_target_: os.system, command: {TOUCH}}}")


@pytest.mark.parametrize(
    "config",
    [
        {"stolen": {"e": {"_target_": "evil.Evil"}}, "hydra": {"callbacks": "${stolen}"}},
        {"stolen": "evil.Evil", "hydra": {"callbacks": {"e": {"_target_": "${stolen}"}}}},
        {"hydra": {"callbacks": {"e": {"_target_": "${oc.decode:evil.Evil}"}}}},
        {"hydra": {"callbacks": {"e": {"_target_": "evil.${hydra.job.num}"}}}},
        {"hydra": {"callbacks": {"e": {"a": [[{"_target_": "evil.Evil"}]], "_target_": "optuna.pruners.NopPruner"}}}},
        {"hydra": {"job_logging": {"formatters": {"e": {"()": "evil.Evil"}}}}},
        {"hydra": {"job_logging": {"formatters": {"e": {"()": "ext://evil.Evil"}}}}},
        {"hydra": {"hydra_logging": {"formatters": {"e": {"class": "evil.Evil"}}}}},
        {"hydra": {"hydra_logging": {"filters": {"e": {"()": "os.system", "command": TOUCH}}}}},
        {"hydra": {"hydra_logging": {"handlers": {"e": {"class": "logging.FileHandler", "filename": CANARY}}}}},
        {"hydra": {"job_logging": {"handlers": {"e": {"class": "logging.FileHandler", "filename": CANARY}}}}},
        {"hydra": {"job_logging": {"handlers": {"e": {"class": "logging.handlers.SocketHandler", "host": "a"}}}}},
        {"hydra": {"job_logging": {"handlers": {"e": {"class": "logging.StreamHandler", "stream": "ext://evil.x"}}}}},
        {"hydra": {"job_logging": {"handlers": {"e": {"class": "${hydra.job.num}"}}}}},
        {"hydra": {"job": {"env_set": {"GIT_EXTERNAL_DIFF": "./evil.sh"}}}},
        {"hydra": {"job": {"env_set": {"PYTHONPATH": "."}}}},
        {"hydra": {"job": {"env_set": {"LD_PRELOAD": "./evil.so"}}}},
        {"hydra": {"output_subdir": f"../../{CANARY}"}},
        {"hydra": {"output_subdir": "/tmp/leyden-canary"}},
        {"hydra": {"searchpath": ["pkg://evil"]}},
    ],
)
def test_what_hydra_reads_is_checked(folder: Path, capfd: pytest.CaptureFixture, config: dict):
    assert_refused(capfd, "train", "-m", "seed=0", experiment(folder, config), "hydra/sweeper=basic")


@pytest.mark.parametrize("sweeper", [[], ["hydra/sweeper=basic"], ["hydra/launcher=joblib", "hydra/sweeper=basic"]])
def test_what_only_a_job_takes_is_checked(folder: Path, capfd: pytest.CaptureFixture, sweeper: list[str]):
    """The master config of `experiment=a,b` has neither."""
    (folder / "experiments" / "good.yaml").write_text("# @package _global_\n")
    experiment(folder, {"hydra": {"job": {"env_set": {"GIT_EXTERNAL_DIFF": "./evil.sh"}}}})
    assert main(["train", "-m", "experiment=theirs,good", *sweeper, *SMALL]) == 2
    assert "hydra.job.env_set.GIT_EXTERNAL_DIFF" in capfd.readouterr().err


@pytest.mark.parametrize(
    "argument",
    ["--experimental-rerun=evil.pkl", "-er", "--config-dir=.", "--config-path=.", "--config-name=evil", "--resolve"],
)
def test_flags_of_hydra_that_read_or_start_something_are_refused(
    folder: Path, capfd: pytest.CaptureFixture, argument: str
):
    assert_refused(capfd, "train", argument)
    assert_refused(capfd, "train", "-m", argument, "seed=0")


def test_a_package_on_the_search_path_is_declared(folder: Path, capfd: pytest.CaptureFixture):
    for entry in ("pkg://evil", "pkg://evil.sub", "structured://evil"):
        assert "conf/project.yaml" in assert_refused(capfd, "check", f"hydra.searchpath=[{entry}]")


def test_declared_packages_and_installed_plugins_are_used(workdir: Path):
    (workdir / "conf").mkdir()
    (workdir / "conf" / "project.yaml").write_text("targets: [mine]\n")
    (workdir / "mine.py").write_text(
        "from pathlib import Path\n\nfrom hydra.experimental.callback import Callback\n\n\n"
        "class Mine(Callback):\n    def on_multirun_end(self, config, **kwargs):\n        Path('called').touch()\n"
    )
    plain = ["seed=0", *SMALL, "hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "hydra/hydra_logging=default"]
    assert cli("train", "-m", *plain, "+hydra.callbacks.mine={_target_: mine.Mine}") == 0
    assert (workdir / "called").exists()


@pytest.fixture(scope="module")
def hostile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and modules that stand in for the standard library's and for plugins."""
    folder = tmp_path_factory.mktemp("theirs")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert cli("train", *SMALL) == 0
    finally:
        os.chdir(before)
    shadows = ("random", "signal", "socket", "queue", "tokenize", "colorlog", "triton", "hydra_plugins/evil")
    for name in shadows:
        path = folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"open({str(folder / CANARY)!r}, 'w').close()\nraise RuntimeError({name!r})\n")
    (folder / "mine.py").write_text(
        f"open({str(folder / CANARY)!r}, 'w').close()\n\nfrom typing import Annotated\n\nimport pydantic\n\n\n"
        "class Mine:\n    def __init__(self, a: Annotated[int, shadow.call()], b: pydantic.ImportString): ...\n"
    )
    (folder / "conf" / "data").mkdir(parents=True)
    (folder / "conf" / "data" / "mine.yaml").write_text("_target_: mine.Mine\na: 1\nb: random\n")
    (folder / "conf" / "project.yaml").write_text("targets: [mine]\n")
    return folder


def test_a_nest_of_aliases_is_refused(workdir: Path, capfd: pytest.CaptureFixture):
    """Nine lines of YAML that stand for a billion values keep no command busy."""
    levels = [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 10)]
    bombs = {
        "lists": "\n".join(["x0: &x0 [1]", *levels]),
        "merges": "\n".join(["x0: &x0 {a: 1}", *(f"x{n}: &x{n} {{<<: [*x{n - 1}, *x{n - 1}]}}" for n in range(1, 30))]),
        "itself": "x0: &x0 [*x0]",
    }
    (workdir / "conf" / "experiment").mkdir(parents=True)
    for name, text in bombs.items():
        (workdir / "conf" / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")
        assert main(["check", f"experiment={name}"]) == 2
        message = capfd.readouterr().err
        assert message == (
            f"leyden: conf/experiment/{name}.yaml: its YAML aliases (*name) stand for more than 10,000 values\n"
        )
    (workdir / "conf" / "experiment" / "few.yaml").write_text(
        "# @package _global_\nx: &x [1]\ny: ${z}\nz: [*x, *x, '${x}']\n"
    )
    assert main(["check", "experiment=few"]) == 2
    assert "aliases" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "check",
        "check -m seed=0,1",
        "check data=mine",
        "check -m seed=0,1 hydra.sweeper.n_trials=1 hydra.sweeper.sampler={_target_:mine.Mine}",
        "train --cfg job",
        "train --info config",
        "ls",
        "show last",
        "compare last last",
        "doctor",
        "wandb-sweep seed=0,1",
        "-sc query=bash",
        "--help",
    ],
)
def test_looking_at_a_folder_imports_nothing_from_it(hostile_folder: Path, command: str):
    leyden = (
        [str(Path(sys.executable).with_name("leyden"))] if command != "check" else [sys.executable, "-m", "leyden.cli"]
    )
    done = subprocess.run([*leyden, *shlex.split(command)], cwd=hostile_folder, capture_output=True, text=True)
    assert done.returncode in (0, 2), done.stderr
    assert "RuntimeError" not in done.stderr
    assert not (hostile_folder / CANARY).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["train"], ["train", "accelerator=cpu_ddp", "trainer.devices=2"], ["train", "-m", "seed=0,1"]]
)
def test_files_of_the_working_directory_shadow_no_module(hostile_folder: Path, arguments: list[str]):
    leyden = str(Path(sys.executable).with_name("leyden"))
    done = subprocess.run([leyden, *arguments, *SMALL], cwd=hostile_folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (hostile_folder / CANARY).exists()
