"""Build objects from config nodes: only `instantiate` does so, and only for classes of allowed packages."""

import difflib
import functools
import importlib
import inspect
import sys
from collections.abc import Iterable
from typing import Any

from leyden.config import lightning_names, signatures
from leyden.config.defaults import read_project_file
from leyden.config.locations import module_path
from leyden.config.user_code import add_context, place_in_user_code
from leyden.errors import UserError, nearest
from leyden.lazy_imports import public_names

# Packages whose classes a config may name; of leyden's packages only the public names, which their __init__.py lists.
# A user's project adds its own packages in conf/project.yaml.
PACKAGES = "callbacks data evaluation loggers metrics models nets optim sweep training"
LEYDEN = tuple(f"leyden.{name}" for name in PACKAGES.split())
ALLOWED_PACKAGES = (
    *LEYDEN,
    "torch.nn",
    "torch.optim",
    "torchmetrics",
    "lightning.Trainer",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.demos.boring_classes",
    "lightning.pytorch.demos.lstm",
    "lightning.pytorch.demos.transformer",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    "lightning.pytorch.trainer",
    "optuna.distributions",
    "optuna.pruners",
    "optuna.samplers",
)
FORBIDDEN_PACKAGES = (
    "lightning.pytorch.callbacks.spike",  # writes a file into the working directory
    "lightning.pytorch.loggers.litlogger",  # restarts the program to record its terminal
    "lightning.pytorch.loggers.wandb",  # lets git run programs that a repository names
    "torchmetrics.functional",  # its networks load weights from any path
    "torchmetrics.multimodal",  # loads models that bring their own code
    "torchmetrics.text.bert",  # loads models, and a table from any URL
    "torchmetrics.text.infolm",
)
# Packages that may define an allowed class: the allowed ones re-export classes of the first two.
DEFINING_PACKAGES = ("torch.ao.nn", "torch.distributed.fsdp", *ALLOWED_PACKAGES)


def instantiate(node: Any, path: str, **supplied: Any) -> Any:
    """Build what a config node describes: nested nodes first, `_partial_: true` as a functools.partial.

    Raises:
        UserError: if the target is not allowed, cannot be found, or does not take the arguments.
    """
    if isinstance(node, list):
        return [instantiate(item, f"{path}.{i}") for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    arguments = {k: instantiate(v, f"{path}.{k}") for k, v in node.items() if k not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return arguments
    target = _import(node["_target_"], path)
    build = functools.partial(target, **arguments, **supplied)
    if node.get("_partial_"):
        return build
    try:
        inspect.signature(target).bind(**arguments, **supplied)
    except TypeError as error:
        raise UserError(f"{path}: {node['_target_']}: {error}") from error
    try:
        return build()
    except UserError:
        raise
    except ValueError as error:  # raised by leyden and most libraries for a wrong argument
        raise UserError(f"{path}: {node['_target_']}: {error}{place_in_user_code(error)}") from error
    except Exception as error:
        add_context(error, f"{path}: {node['_target_']}")
        raise


def _import(target: str, path: str) -> Any:
    """Import an allowed class; its defining module must be allowed too, so a re-exported `os.system` is refused."""
    if problem := refusal(target):
        raise UserError(f"{path}._target_={target}: {problem}")
    module_name, _, name = target.rpartition(".")
    lightning_names.install()
    sys.path[:] = module_path()  # set only here: commands that build nothing do not import from the working directory
    try:
        kind = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{path}._target_={target} cannot be imported: {error}{place_in_user_code(error)}") from error
    except Exception as error:
        add_context(error, f"{path}._target_={target}")
        raise
    origin = getattr(kind, "__module__", None) or ""
    is_allowed = (
        inspect.isclass(kind) and is_inside(origin, DEFINING_PACKAGES) and not is_inside(origin, FORBIDDEN_PACKAGES)
    )
    if not is_allowed and not (callable(kind) and is_inside(origin, declared_packages())):
        raise UserError(f"{path}._target_={target}: not a class of an allowed package")
    return kind


def refusal(target: str) -> str | None:
    """Return the reason why a target may not be built, judged by its name and source; None if it may be built."""
    packages = allowed_packages()
    if name := lightning_names.current_name(target):
        return f"write {name}, the current name of this package"
    if not is_inside(target, packages):
        other_packages = ", ".join(package for package in packages if package not in LEYDEN)
        names = f"leyden.{{{PACKAGES.replace(' ', ',')}}}, {other_packages}"
        advice = "if it is yours, add its package to targets in conf/project.yaml"
        return f"only classes of {names} are built from a config; {advice}"
    if is_inside(target, LEYDEN):
        return _wrong_public_name(target)
    definition = signatures.locate(target)
    if any(is_inside(name, FORBIDDEN_PACKAGES) for name in (target, definition.module.name if definition else "")):
        return "this class is not built from a config: it reads or writes files outside the run"
    is_declared = is_inside(target, declared_packages())
    if not is_declared and any(part.startswith("_") for part in target.split(".")):
        return "this class is not built from a config: a name that begins with _ is private"
    module, _, name = target.rpartition(".")
    if not signatures.module_exists(target.split(".")[0]):
        return f"there is no package {target.split('.')[0]} here: install it, or run from your project's folder"
    if not signatures.module_exists(module):
        return f"there is no module {module}"
    if definition is None:
        names = signatures.public_names(module)
        # a library may define names that its source does not show
        if name not in names and (is_declared or difflib.get_close_matches(name, names, n=1, cutoff=0.7)):
            return f"{module} has no {name}{nearest(name, names)}"
    return None


def _wrong_public_name(target: str) -> str | None:
    """Suggest the public name of leyden that was probably meant; None if the target is one."""
    package = next(package for package in LEYDEN if is_inside(target, [package]))
    name, names = target.removeprefix(f"{package}."), public_names(package)
    return None if name in names else f"{package} has no {name}{nearest(name.rpartition('.')[2], names)}"


def is_inside(target: str, packages: Iterable[str]) -> bool:
    """Return whether a dotted path is one of these packages, or lies in one."""
    return any(target == package or target.startswith(package + ".") for package in packages)


def allowed_packages() -> tuple[str, ...]:
    """Return the packages whose classes may be built: leyden's list and those that conf/project.yaml declares."""
    return (*ALLOWED_PACKAGES, *declared_packages())


def declared_packages() -> tuple[str, ...]:
    """Return the packages that the project's conf/project.yaml declares as the user's own."""
    return tuple(read_project_file().get("targets", ()))
