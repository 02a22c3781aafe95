"""The former names of Lightning's packages: a project that imports `pytorch_lightning` gets `lightning.pytorch`.

Both packages hold the same code, but the Trainer of one does not accept a LightningModule of the other. Much research
code still imports the former name; this module lets it run unchanged.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from typing_extensions import override

PACKAGES = {"pytorch_lightning": "lightning.pytorch", "lightning_fabric": "lightning.fabric"}


def current_name(name: str) -> str | None:
    """Return the current name of a module or class of a former package; None for any other name."""
    package, dot, rest = name.partition(".")
    return PACKAGES[package] + dot + rest if package in PACKAGES else None


def install() -> None:
    """Make imports of the former packages find the current ones in this process, from now on."""
    is_loaded = any(package in sys.modules for package in PACKAGES)
    if not is_loaded and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder, Loader):
    """Finds modules by their former names; they are the module objects of the current packages."""

    @override
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        name = current_name(fullname)
        if name is None or importlib.util.find_spec(name) is None:
            return None
        return ModuleSpec(fullname, self, loader_state=name)

    @override
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(spec.loader_state)
        spec.loader_state = module.__spec__
        return module

    @override
    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own spec, which the import system has replaced; the module's code has already run."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state
