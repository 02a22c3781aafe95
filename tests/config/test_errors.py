"""An error in the user's code is reported in one line: what was raised, where, and where its traceback is."""

import re
from pathlib import Path

import pytest

from leyden.config.user_code import describe
from leyden.run.find import list_runs
from support.processes import cli

pytestmark = pytest.mark.usefixtures("undrawn")

NET = """
import os
import sys
from leyden.models.classifier import Classifier
RAISES = os.environ.get("RAISES", "pass")
{top}
class Net(Classifier):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        {constructor}

    def training_step(self, batch, batch_idx):
        {step}
        return super().training_step(batch, batch_idx)

    def predict_step(self, batch, batch_idx):
        {step}

    def test_step(self, batch, batch_idx):
        {step}
"""
SMALL = ["data.limit=64", "data.batch_size=16", "model.net.width=2", "trainer.max_epochs=1"]


def project(top: str = "", constructor: str = "pass", step: str = "pass") -> None:
    Path("my").mkdir(exist_ok=True)
    Path("my/__init__.py").touch()
    Path("my/net.py").write_text(NET.format(top=top, constructor=constructor, step=step))
    Path("conf").mkdir(exist_ok=True)
    Path("conf/project.yaml").write_text("targets: [my]\n")


def complaint(capfd: pytest.CaptureFixture, *arguments: str, code: int = 1) -> str:
    """Run a command that fails; return its only line on standard error."""
    assert cli(*arguments) == code
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("leyden: ")]
    assert len(lines) == 1 or "-m" in arguments  # each of a sweep's jobs has its own
    return lines[-1].removeprefix("leyden: ")


def line_of(text: str) -> int:
    return next(n for n, line in enumerate(Path("my/net.py").read_text().splitlines(), 1) if text in line)


TRAIN = ("train", "model._target_=my.net.Net", *SMALL)


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ("a, b = [1, 2, 3]", r"ValueError: too many values to unpack \(expected 2(, got 3)?\)"),
        ("{}['x']", "KeyError: 'x'"),
        ("assert batch is None", "AssertionError"),
        ("raise RuntimeError('first\\nsecond')", "RuntimeError: first …"),
        (
            "raise ExceptionGroup('both', [KeyError('y'), ValueError()])",
            r"ExceptionGroup: both \(2 errors\), the first: KeyError: 'y'",
        ),
        ("open('no/such')", r"FileNotFoundError: \[Errno 2\] No such file or directory: 'no/such'"),
        ("raise OSError('a tape is missing')", "OSError: a tape is missing"),
    ],
)
def test_an_error_in_a_step_says_where(workdir: Path, capfd: pytest.CaptureFixture, step: str, told: str):
    project(step=step)
    line = complaint(capfd, *TRAIN, code=1)
    run, number = list_runs()[-1], line_of(step)
    log = run.path.relative_to(workdir) / "log.txt"
    assert re.fullmatch(rf"{told} at my/net.py:{number} in training_step \(the traceback is in {log}\)", line), line
    assert run.status["reason"] == line.partition(" (the traceback")[0]
    assert "Traceback" in (run.path / "log.txt").read_text()


def test_an_error_in_a_rank_says_where(workdir: Path, capfd: pytest.CaptureFixture):
    project(step="{}['x']")
    line = complaint(capfd, *TRAIN, "accelerator=cpu_ddp")
    assert re.fullmatch(
        rf"rank [01] of 2 failed: KeyError: 'x' at my/net.py:{line_of('{}')} in training_step \(runs/.*\.txt\)", line
    )


def test_an_error_in_a_sweeps_job_says_where(workdir: Path, capfd: pytest.CaptureFixture):
    project(step="{}['x']")
    line = complaint(capfd, "train", "-m", *TRAIN[1:], "seed=0,1")
    assert f"KeyError: 'x' at my/net.py:{line_of('{}')} in training_step" in line


def test_an_error_in_a_constructor_says_which_key_and_where(workdir: Path, capfd: pytest.CaptureFixture):
    project(constructor="1 / 0")
    line = complaint(capfd, *TRAIN)
    told = f"model: my.net.Net: ZeroDivisionError: division by zero at my/net.py:{line_of('1 / 0')} in __init__"
    assert line.startswith(f"{told} (the traceback is in runs/")
    project(constructor="raise ValueError('width is odd')")
    place = f"my/net.py:{line_of('odd')} in __init__"
    assert complaint(capfd, *TRAIN, code=2) == f"model: my.net.Net: width is odd at {place}"


def test_an_error_while_a_module_is_imported_says_where(workdir: Path, capfd: pytest.CaptureFixture):
    project(top="x = {}['x']")
    line = complaint(capfd, *TRAIN)
    place = f"my/net.py:{line_of('x = ')} in <module>"
    assert line.startswith(f"model._target_=my.net.Net: KeyError: 'x' at {place} (the traceback is in runs/")
    project(top="def broken(:")
    assert f"SyntaxError: invalid syntax at my/net.py:{line_of('broken')}" in complaint(capfd, *TRAIN)
    project(top="import no_such_thing")
    line = complaint(capfd, *TRAIN, code=2)
    assert line.endswith(f"No module named 'no_such_thing' at my/net.py:{line_of('no_such')} in <module>")


def test_where_no_log_is_kept_the_traceback_is_a_variable_away(workdir: Path, capfd: pytest.CaptureFixture):
    project()
    assert cli(*TRAIN, "test=false") == 0
    capfd.readouterr()
    project(step="{}['x']")
    for command, where in ((["evaluate", "last"], "test_step"), (["find", "lr", *TRAIN[1:]], "training_step")):
        line = complaint(capfd, *command)
        told = rf"KeyError: 'x' at my/net\.py:\d+ in {where} \(LEYDEN_DEBUG=1 shows the traceback\)"
        assert re.fullmatch(told, line)


def test_an_error_is_told_from_its_chain_and_whatever_its_message_is():
    class SilentError(Exception):
        def __str__(self) -> str:
            raise TypeError("no message")

    def user() -> None:
        raise KeyError("x")

    def outer() -> None:
        try:
            user()
        except KeyError as inner:
            raise SilentError from inner

    with pytest.raises(SilentError) as raised:
        outer()
    assert re.fullmatch(r"SilentError at .*test_errors\.py:\d+ in outer", describe(raised.value))
    assert describe(ValueError("")) == "ValueError"
