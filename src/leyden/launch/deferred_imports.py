"""Defer modules that other packages import eagerly but hardly ever use, until one of their names is used.

A training step needs neither `torch._dynamo`, which every optimizer and `lightning.fabric.wrappers` import to exclude
functions from compilation, nor `scipy.signal`, to which torchmetrics adds a function for a third package. Together they
take a third of the CPU time of a start. Each is replaced by a module that holds stand-ins for the few names that the
importers use. Any other name runs the real code in the same module object, so a version of the importers that uses
more names also works, and only starts more slowly.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial, wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import FunctionType, ModuleType
from typing import Any

from typing_extensions import override

_loading = RLock()
_disabled: list[Callable[[ModuleType], None]] = []  # each is called with torch._dynamo after its code has run


def install() -> None:
    """Defer these imports in this process; call this before torch is imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Deferred(ModuleType):
    """A module whose code runs when an attribute that it lacks is read."""

    @override
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # such as __wrapped__, which tools look up in every module
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        run(self)
        return getattr(self, name)


def run(module: ModuleType) -> None:
    """Run the code of a deferred module, unless it has run."""
    with _loading:
        if isinstance(module, _Deferred):
            spec = module.__spec__
            assert spec is not None
            object.__setattr__(module, "__class__", ModuleType)
            for name in STAND_INS[module.__name__]:
                delattr(module, name)
            spec.loader = spec.loader_state.loader
            assert spec.loader is not None
            spec.loader.exec_module(module)
            AFTER_RUN[module.__name__](module)


class _Finder(MetaPathFinder):
    @override
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a deferred module; run it before a submodule of it is imported, as Python would."""
        if fullname in STAND_INS:
            real_spec = PathFinder.find_spec(fullname, path)
            if real_spec is None or real_spec.origin is None:
                return None
            spec = ModuleSpec(fullname, _StandInLoader(), origin=real_spec.origin, loader_state=real_spec)
            spec.submodule_search_locations = real_spec.submodule_search_locations
            spec.has_location = True
            return spec
        parent = sys.modules.get(fullname.rpartition(".")[0])
        if isinstance(parent, _Deferred):
            run(parent)
            if module := sys.modules.get(fullname):  # the parent has imported it
                return ModuleSpec(fullname, _LoadedModuleLoader(module), loader_state=module.__spec__)
        return None


class _StandInLoader(Loader):
    @override
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a deferred module, whose code has not run."""
        return _Deferred(spec.name)

    @override
    def exec_module(self, module: ModuleType) -> None:
        """Add the stand-ins for its names."""
        vars(module).update(STAND_INS[module.__name__])


class _LoadedModuleLoader(Loader):
    def __init__(self, module: ModuleType) -> None:
        self._module = module

    @override
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module that its parent has imported."""
        return self._module

    @override
    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own spec; its code has run already."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def _run_dynamo() -> ModuleType:
    module = sys.modules["torch._dynamo"]
    run(module)
    return module


def _disable(function: Any = None, recursive: bool = True, **options: Any) -> Any:
    """Stand in for `torch._dynamo.disable`, which is applied to the function once torch._dynamo has run."""
    if function is None:
        return partial(_disable, recursive=recursive, **options)
    if not isinstance(sys.modules["torch._dynamo"], _Deferred) or not isinstance(function, FunctionType):
        return _run_dynamo().disable(function, recursive, **options)
    target: Any = function

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return target(*args, **kwargs)

    def disable(dynamo: ModuleType) -> None:
        nonlocal target
        target = dynamo.disable(function, recursive, **options)
        vars(call).update(vars(target))  # attributes by which torch._dynamo recognizes disabled functions

    _disabled.append(disable)
    return call


def _graph_break(*arguments: Any, **options: Any) -> None:
    """Do nothing until torch._dynamo runs, because before that there is no graph."""
    if not isinstance(sys.modules["torch._dynamo"], _Deferred):
        _run_dynamo().graph_break(*arguments, **options)


class _OptimizedModuleType(type):
    @override
    def __instancecheck__(cls, instance: Any) -> bool:
        """Return whether an object is a compiled module; before torch._dynamo has run, there is none."""
        dynamo = sys.modules["torch._dynamo"]
        return not isinstance(dynamo, _Deferred) and isinstance(instance, dynamo.OptimizedModule)


class _OptimizedModule(metaclass=_OptimizedModuleType):
    pass


def _apply_disable(dynamo: ModuleType) -> None:
    for disable in _disabled:
        disable(dynamo)
    _disabled.clear()


def _add_hamming(signal: ModuleType) -> None:
    """Add the old name `hamming` to scipy.signal, as torchmetrics does when it is imported."""
    if not hasattr(signal, "hamming"):
        signal.hamming = signal.windows.hamming  # pyrefly: ignore[missing-attribute]


def _hamming(*arguments: Any, **options: Any) -> Any:
    signal = sys.modules["scipy.signal"]
    run(signal)
    return signal.windows.hamming(*arguments, **options)


STAND_INS: dict[str, dict[str, Any]] = {
    "torch._dynamo": {"disable": _disable, "graph_break": _graph_break, "OptimizedModule": _OptimizedModule},
    "scipy.signal": {"hamming": _hamming},
}
AFTER_RUN: dict[str, Callable[[ModuleType], None]] = {"torch._dynamo": _apply_disable, "scipy.signal": _add_hamming}
