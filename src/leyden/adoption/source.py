"""Read the YAML files of a project that was made from lightning-hydra-template as plain data."""

import copy
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from leyden.config.yaml_files import check_aliases, check_encoding
from leyden.errors import UserError

RENAMED_GROUPS = {"datamodule": "data", "module": "model"}  # of older copies of the template
# Patterns in the text of these files, and their replacements. PROJECT_ROOT and the working directory become ".",
# because leyden runs in the project's folder.
REPLACEMENTS = {
    r"\$\{oc\.env:PROJECT_ROOT(,[^}]*)?\}": ".",
    r"\$\{hydra:runtime\.cwd\}": ".",
    r"\$\{hydra:runtime\.output_dir\}": "logs",
    r"\$\{task_name\}": "${name}",
    r"python (src/)?train\.py": "leyden train",  # in comments
    r"(_target_:\s*)pytorch_lightning\.": r"\1lightning.pytorch.",
    **{
        pattern.replace("OLD", old): replacement.replace("NEW", new)
        for old, new in RENAMED_GROUPS.items()
        for pattern, replacement in (
            (r"\$\{OLD(?=[.}])", "${NEW"),
            (r"([\s\[{,]/|override\s)OLD(?=[:@/])", r"\1NEW"),  # in a defaults list
            (r"(?m)^([ \t]*-[ \t]*)OLD(?=:)", r"\1NEW"),
        )
    },
}


class Document(NamedTuple):
    """A file: its path below configs/, its text after the REPLACEMENTS, and the parsed content."""

    file: str
    text: str
    content: dict[str, Any]


class Source:
    """The files below configs/, by the names that leyden gives them, such as `data/mnist`."""

    def __init__(self, root: Path, documents: dict[str, Document]) -> None:
        self.root, self.documents = root, documents

    def group(self, group: str) -> dict[str, Document]:
        """Return the files of a group by the names of its choices."""
        prefix = f"{group}/"
        return {name.removeprefix(prefix): d for name, d in self.documents.items() if name.startswith(prefix)}

    def groups(self) -> list[str]:
        """Return the names of the folders below configs/."""
        return sorted({name.partition("/")[0] for name in self.documents if "/" in name})

    def merged(self, group: str, choice: str, depth: int = 0) -> dict[str, Any]:
        """Return the content of a choice, merged into that of its bases in the same group."""
        document = self.documents.get(f"{group}/{choice}")
        if document is None:
            return {}
        if depth > len(self.documents):
            raise UserError(f"{self.root / document.file}: its defaults list leads back to it")
        entries = bases(document)
        content: dict[str, Any] = {}
        for entry in entries if "_self_" in entries else [*entries, "_self_"]:
            own = {key: value for key, value in document.content.items() if key != "defaults"}
            merge(content, own if entry == "_self_" else self.merged(group, entry, depth + 1))
        return content


def read(root: Path) -> Source:
    """Read the files below `root`/configs.

    Raises:
        UserError: if there is no such project, a file is not valid YAML, or something in configs/ is a link.
    """
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder")
    folder = root / "configs"
    if not (folder / "train.yaml").is_file():
        hint = "; it reads configs/, so rename conf/ first" if (root / "conf" / "train.yaml").is_file() else ""
        raise UserError(f"{root} holds no configs/train.yaml: adopt takes projects of lightning-hydra-template{hint}")
    documents = {}
    for path in _files(folder):
        relative_path = path.relative_to(folder)
        group, *rest = relative_path.with_suffix("").parts
        name = "/".join([RENAMED_GROUPS.get(group, group) if rest else group, *rest])
        if name in documents:
            raise UserError(f"{folder / documents[name].file} and {path} would both become conf/{name}.yaml")
        documents[name] = _load(path, str(relative_path))
    return Source(root, documents)


def merge(target: dict[str, Any], other: dict[str, Any]) -> None:
    """Merge another mapping into `target`, as Hydra merges config files."""
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            merge(target[key], value)
        else:
            target[key] = copy.deepcopy(value)


def bases(document: Document) -> list[str]:
    """Return the names in a defaults list that are files of the same group, and `_self_`."""
    return [entry for entry in document.content.get("defaults") or () if isinstance(entry, str)]


def _files(folder: Path) -> list[Path]:
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(("__", ".")))
        for path in [Path(parent), *(Path(parent, name) for name in (*folders, *sorted(names)))]:
            if path.is_symlink():
                raise UserError(f"{path} is a link: adopt reads only files that lie in the project's configs/")
        files += [Path(parent, name) for name in sorted(names) if name.endswith((".yaml", ".yml"))]
    return [path for path in files if path.is_file()]


def _load(path: Path, file: str) -> Document:
    check_encoding(path)
    check_aliases(path)
    text = path.read_text(encoding="utf-8")
    for pattern, replacement in REPLACEMENTS.items():
        text = re.sub(pattern, replacement, text)
    try:
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    content = {} if content is None else content
    if not isinstance(content, dict) or not isinstance(content.get("defaults") or [], list):
        raise UserError(f"{path}: a config file holds keys and values, and its `defaults` are a list")
    return Document(file, text, {RENAMED_GROUPS.get(key, key): value for key, value in content.items()})


def defaults_entries(document: Document) -> list[tuple[str, Any]]:
    """Return the entries of a defaults list that choose from a group, as pairs of their key and the choice."""
    pairs = [next(iter(e.items())) for e in document.content.get("defaults") or () if isinstance(e, dict) and e]
    return [(str(key), _choice(value)) for key, value in pairs]


def _choice(value: Any) -> str | list[str] | None:
    if isinstance(value, list):
        return [str(name).removesuffix(".yaml") for name in value]
    return None if value is None else str(value).removesuffix(".yaml")
