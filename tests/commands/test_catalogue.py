"""A command is one file and one row of the catalogue: help, completion and docs/commands.md need no other edit."""

import contextlib
import re
from pathlib import Path

import pytest

import leyden.commands
from leyden.cli import main
from leyden.commands.catalogue import COMMANDS, Command
from leyden.commands.complete import complete

ROOT = Path(__file__).parents[2]
PARTS = {"__init__", "arguments", "catalogue", "complete", "show_sweep"}  # of the package, which are no commands


def test_a_file_and_a_row_make_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "count_words.py").write_text("def main(arguments):\n    print(len(arguments))\n    return 7\n")
    monkeypatch.setattr(leyden.commands, "__path__", [*leyden.commands.__path__, str(tmp_path)])
    monkeypatch.setitem(COMMANDS, "count-words", Command("count words: leyden count-words WORD…", "overrides"))
    assert main(["count-words", "a", "b"]) == 7
    assert capfd.readouterr().out == "2\n"
    assert main(["--help"]) == 0
    assert "  count-words count words: leyden count-words WORD…\n" in capfd.readouterr().out
    assert main(["count-word"]) == 2
    assert "did you mean count-words?" in capfd.readouterr().err
    assert complete([], "count") == ["count-words"]
    assert "data=digits" in complete(["count-words"], "data=d")


def test_every_file_of_the_package_is_a_command_and_every_command_has_a_file() -> None:
    files = {path.stem for path in Path(leyden.commands.__file__).parent.glob("*.py")} - PARTS
    assert files == {name.replace("-", "_") for name in COMMANDS}


@pytest.mark.parametrize(
    "arguments", [["help", "train"], *([name, "--help"] for name in ("resume", "rerun", "submit"))]
)
def test_a_command_shows_its_help(arguments: list[str], capfd: pytest.CaptureFixture) -> None:
    with contextlib.suppress(SystemExit):  # argparse ends so, with 0
        assert main(arguments) == 0
    out, err = capfd.readouterr()
    assert out.startswith(f"usage: leyden {' '.join(arguments).replace('help', '').strip('- ')} ")
    assert not err


def test_the_page_of_commands_shows_every_one_and_no_other() -> None:
    table = (ROOT / "docs" / "commands.md").read_text().partition("\n\n`RUN`")[0]
    usages = " ".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| `"))
    shown = set(re.findall(r"`(?:leyden )?([a-z-]+)", usages))
    assert shown == set(COMMANDS)


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))])
def test_commands_that_documents_show_exist(path: Path) -> None:
    shown = re.findall(r"(?:`|\$ |^ {4})leyden ([a-z][a-z-]*)", path.read_text(), flags=re.MULTILINE)
    assert set(shown) - set(COMMANDS) == set()
