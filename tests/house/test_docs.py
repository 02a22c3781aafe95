"""What the documentation shows is valid: links, names of files and tests, the README's promises, manifests."""

import ast
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
import yaml

from leyden.cli import main

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "docs" / "kubernetes"
FOLDERS = (".", "docs", "docs/decisions", "experiments", ".github", "src/leyden/template")
DOCUMENTS = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.md"))]
# those that describe the source; others speak of folders of runs, too
SOURCE_DOCUMENTS = [
    ROOT / "CONTRIBUTING.md",
    ROOT / "docs/architecture.md",
    *sorted((ROOT / "docs/decisions").glob("*.md")),
]
CODE = re.compile(r"```.*?```|``.*?``|`[^`]*`", re.DOTALL)
# a path in backticks, or `path::name`, a class or function of that file
FILE = re.compile(r"`((?:[\w.-]+/)+(?:[\w.-]+\.(?:py|md|yaml|yml|html|txt|png|ckpt))?)(?:::(\w+))?`")
PLACES = (ROOT, ROOT / "src", ROOT / "src/leyden", ROOT / "conf", ROOT / "src/leyden/template")


def names(path: Path) -> set[str]:
    """Return the names of all classes and functions that a file defines."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them: the second `Why` is `why-1`."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#{1,6} +(.+?)\s*$", text, flags=re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    seen: Counter[str] = Counter()
    made = set()
    for slug in (re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain):
        made.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return made


def broken_links(path: Path) -> list[str]:
    """Return the relative links of a document that lead nowhere; others are not followed."""
    targets = re.findall(r"\]\(<?([^)\s>]+)", CODE.sub("", path.read_text()))
    broken = []
    for target in (target for target in targets if not re.match(r"[a-z]+:", target)):
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path):
    assert broken_links(path) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path):
    (tmp_path / "there.md").write_text("# Is `B` better than A?\n\n## Why\n\n## Why\n")
    document = tmp_path / "document.md"
    document.write_text(
        "[a](there.md) [b](there.md#is-b-better-than-a) [c](there.md#why-1) [d](https://nowhere.example) `[e](gone.md)`\n"
        "```\n[f](gone.md)\n```\n[g](gone.md) [h](there.md#why-2) [i](#nothing)\n"
    )
    assert broken_links(document) == ["gone.md", "there.md#why-2", "#nothing"]


@pytest.mark.parametrize("path", SOURCE_DOCUMENTS, ids=lambda path: path.name)
def test_files_and_functions_that_are_named_exist(path: Path):
    missing = []
    for file, name in FILE.findall(path.read_text().replace("NAME.yaml", "")):
        matches = [place / file for place in PLACES if (place / file).exists()]
        if not matches or (name and name not in names(matches[0])):
            missing.append(f"{file}::{name}" if name else file)
    assert missing == []


@pytest.fixture(scope="module")
def tests() -> set[str]:
    """The names of all test functions, wherever they stand below tests/."""
    files = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "src/leyden/template/tests").glob("test_*.py")]
    return {name for path in files for name in names(path) if name.startswith("test_")}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_that_are_named_exist(path: Path, tests: set[str]):
    assert set(re.findall(r"`(test_\w+)`", path.read_text())) - tests == set()


def test_every_promise_of_the_readme_has_its_tests():
    why = (ROOT / "README.md").read_text().partition("\n## Why\n")[2].partition("\n## ")[0]
    promises = re.findall(r"^- \*\*\[(.+?)\]\(docs/promises.md#(.+?)\)\.\*\*", why, flags=re.MULTILINE)
    assert len(promises) == len(re.findall("^- ", why, flags=re.MULTILINE)) > 0, (
        "- **[Promise](docs/promises.md#…).** …"
    )
    page = (ROOT / "docs" / "promises.md").read_text().partition("\n## Other claims")[0]
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL))
    assert [promise for promise, _ in promises] == list(sections)
    assert [name for name, text in sections.items() if "\nTests: `test_" not in text] == []


def test_every_package_has_a_row_on_the_page_of_the_architecture():
    table = (ROOT / "docs" / "architecture.md").read_text().partition("\n## Packages\n")[2].partition("\n## ")[0]
    source = ROOT / "src" / "leyden"
    packages = {f"{path.parent.name}/" for path in source.glob("*/__init__.py")}
    modules = {path.name for path in source.glob("*.py")} - {"__init__.py"}
    assert {name for name in packages | modules if f"`{name}`" not in table} == set()


def train_commands() -> list[tuple[str, str]]:
    """Return every whole `leyden train …` that the documents show, each with the line after it."""
    shown = []
    documents = {ROOT / "README.md", *(ROOT / "docs").glob("*.md")}
    for path in sorted(documents - {ROOT / "docs" / "extend.md"}):  # tests/commands/test_extend.py runs those
        lines = re.sub(r"\\\n\s*", "", path.read_text()).splitlines()
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            command = re.match(r"(?:\$ | {4})leyden train ([^…#&<]+)(?= #|&|$)", line)
            if command and not {"experiment=better", "experiment=mine", "model=two_layers"} & set(
                command[1].split()
            ):  # of the reader
                shown.append((command[1].strip(), following))
    return shown


@pytest.mark.parametrize(("arguments", "following"), train_commands(), ids=lambda text: text[:60])
def test_commands_that_are_shown_are_right_or_refused_as_shown(
    workdir: Path, capfd: pytest.CaptureFixture, arguments: str, following: str
):
    for folder in ("my_books", "my_pictures"):  # the reader's
        (workdir / folder).mkdir()
    for table in ("power.csv", "photos.csv", "xrays.csv", "reviews.csv"):
        (workdir / table).touch()
    run = workdir / "runs/my_run/20260101-000000-aaaa"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").touch()
    for weights in (run / "checkpoints/step-000000900.ckpt", workdir / "resnet18.pth"):
        weights.write_bytes(b"PK")  # as a file of torch.save begins
    code = main(["check", *shlex.split(arguments)])
    complaint = capfd.readouterr().err.strip()
    if following.startswith("leyden: "):
        assert (code, complaint) == (2, following)
    else:
        assert (code, complaint) == (0, "")


@pytest.mark.parametrize("name", ["job.yaml", "pytorchjob.yaml"])
def test_kubernetes_takes_the_manifests(name: str):
    validate = pytest.importorskip("kubernetes_validate").validate
    for document in yaml.safe_load_all((KUBERNETES / name).read_text()):
        if document["kind"] == "PyTorchJob":  # the operator's kind; its pods are Kubernetes'
            template = document["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
            document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "worker"}, **template}
        validate(document, "1.34", strict=True)
