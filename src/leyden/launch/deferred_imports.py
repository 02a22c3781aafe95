"""Imports that other packages make at once and hardly ever use, put off until something of them is used.

A training step needs neither `torch._dynamo`, which every optimizer and `lightning.fabric.wrappers` import to tell it
what not to compile, nor `scipy.signal`, which torchmetrics imports to give it a function for a third package. Together
they take a third of the CPU time of a start. In their place stands a module that has the few names which these
importers use. Any other name runs the real module, in the same module object; so a version of these packages that needs
more of it starts as slowly as it would have, and is right.
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
_disabled: list[Callable[[ModuleType], None]] = []  # to be called with torch._dynamo when it has run


def install() -> None:
    """Put these imports off in this process; call it before torch is imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Deferred(ModuleType):
    """A module that runs when an attribute is read which it does not have yet."""

    @override
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # such as __wrapped__, which tools ask of every module
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        run(self)
        return getattr(self, name)


def run(module: ModuleType) -> None:
    """Run the code of a deferred module, unless it has been run."""
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
            AFTER[module.__name__](module)


class _Finder(MetaPathFinder):
    @override
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a deferred module; a submodule of one runs it first, as Python would."""
        if fullname in STAND_INS:
            real = PathFinder.find_spec(fullname, path)
            if real is None or real.origin is None:
                return None
            spec = ModuleSpec(fullname, _StandInLoader(), origin=real.origin, loader_state=real)
            spec.submodule_search_locations = real.submodule_search_locations
            spec.has_location = True
            return spec
        parent = sys.modules.get(fullname.rpartition(".")[0])
        if isinstance(parent, _Deferred):
            run(parent)
            if module := sys.modules.get(fullname):  # the parent has imported it
                return ModuleSpec(fullname, _Loaded(module), loader_state=module.__spec__)
        return None


class _StandInLoader(Loader):
    @override
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a module without its code."""
        return _Deferred(spec.name)

    @override
    def exec_module(self, module: ModuleType) -> None:
        """Give it the names that do not need its code."""
        vars(module).update(STAND_INS[module.__name__])


class _Loaded(Loader):
    def __init__(self, module: ModuleType) -> None:
        self._module = module

    @override
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module that was imported meanwhile."""
        return self._module

    @override
    def exec_module(self, module: ModuleType) -> None:
        """Do nothing, since its code has been run, and give it its own spec again."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def _dynamo() -> ModuleType:
    module = sys.modules["torch._dynamo"]
    run(module)
    return module


def _disable(function: Any = None, recursive: bool = True, **options: Any) -> Any:
    """Wrap a function that is not to be compiled; what wraps it for good is made when torch._dynamo runs."""
    if function is None:
        return partial(_disable, recursive=recursive, **options)
    if not isinstance(sys.modules["torch._dynamo"], _Deferred) or not isinstance(function, FunctionType):
        return _dynamo().disable(function, recursive, **options)
    target: Any = function

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return target(*args, **kwargs)

    def disable(dynamo: ModuleType) -> None:
        nonlocal target
        target = dynamo.disable(function, recursive, **options)
        vars(call).update(vars(target))  # by these attributes torch._dynamo knows what to leave alone

    _disabled.append(disable)
    return call


def _graph_break(*arguments: Any, **options: Any) -> None:
    """Do nothing: without torch._dynamo there is no graph."""
    if not isinstance(sys.modules["torch._dynamo"], _Deferred):
        _dynamo().graph_break(*arguments, **options)


class _OptimizedModuleType(type):
    @override
    def __instancecheck__(cls, instance: Any) -> bool:
        """Tell whether something is a compiled module, which it cannot be before torch._dynamo has run."""
        dynamo = sys.modules["torch._dynamo"]
        return not isinstance(dynamo, _Deferred) and isinstance(instance, dynamo.OptimizedModule)


class _OptimizedModule(metaclass=_OptimizedModuleType):
    pass


def _disable_for_good(dynamo: ModuleType) -> None:
    for disable in _disabled:
        disable(dynamo)
    _disabled.clear()


def _add_hamming(signal: ModuleType) -> None:
    """Give scipy.signal the function under its old name, as torchmetrics does at once."""
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
AFTER: dict[str, Callable[[ModuleType], None]] = {"torch._dynamo": _disable_for_good, "scipy.signal": _add_hamming}
