"""`leyden new PATH`: write a small project that trains, has tests, and meets its expectation."""

import importlib.util
import keyword
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from leyden.commands.arguments import Arguments
from leyden.errors import UserError

RESERVED_NAMES = ("conf", "experiment", "experiments", "runs", "tests")  # other folders that the project has


def main(arguments: list[str]) -> int:
    """Write the project, and print the next steps."""
    parser = Arguments("new", "Write a project: a model, its data, an experiment and tests, ready to run and change.")
    parser.add_argument("path", metavar="PATH", type=Path, help="a new folder; its name becomes the package's")
    path = parser.parse_args(arguments).path
    package = package_name(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is not empty: name a new folder")
    try:
        write(files("leyden") / "template", path, package)
        (path / "conf" / "experiment").symlink_to(Path("..", "experiments"))  # where Hydra looks for experiments
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    print(f"{path} was written. Next:\n  cd {path}\n  leyden train experiment=mine\n  pip install pytest\n  pytest")
    return 0


def package_name(path: Path) -> str:
    """Return the name of the project's package: my_thing for my-thing.

    Raises:
        UserError: if Python could not import that name, or would import another module.
    """
    name = path.absolute().name
    package = name.replace("-", "_").replace(" ", "_")
    if not (package.isascii() and package.isidentifier()) or keyword.iskeyword(package):
        raise UserError(f"{name}: {package} is not a valid name of a Python package; use letters, digits, - and _")
    spec = importlib.util.find_spec(package)
    is_taken = spec and str(path.absolute()) not in (spec.submodule_search_locations or [])
    if package in RESERVED_NAMES or is_taken:
        raise UserError(f"{name}: there is a module {package} already, which would hide this one; use another name")
    return package


def write(template: Traversable, path: Path, package: str) -> None:
    """Copy the template's files, and replace my_project and my-project with the project's name."""
    path.mkdir(parents=True, exist_ok=True)
    for item in template.iterdir():
        name = {"gitignore": ".gitignore", "my_project": package}.get(item.name, item.name)
        if item.name == "__pycache__":
            continue
        if item.is_dir():
            write(item, path / name, package)
        else:
            text = item.read_text(encoding="utf-8")
            text = text.replace("my_project", package).replace("my-project", package.replace("_", "-"))
            (path / name).write_text(text, encoding="utf-8")
