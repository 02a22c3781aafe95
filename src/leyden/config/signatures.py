"""The arguments that a target takes, read from its source without importing it.

A target is a dotted path to a class or function. Its file is found as an import would find it, and parsed. Arguments
that the source does not show (compiled code, `**kwargs`, unknown decorators) are checked only by the call itself.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from itertools import takewhile
from pathlib import Path
from typing import Any

from leyden.config.locations import module_path

# Modules that are cheap to import, and whose names can serve as types directly.
PLAIN_MODULES = {"typing", "typing_extensions", "pydantic", "annotated_types", "pathlib", "datetime", "collections.abc"}


SUPER_INIT = re.compile(r"super\((\w+, self)?\)\.__init__")


@dataclass(frozen=True)
class Module:
    """A parsed source file."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """The package that relative imports in this file start from."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Definition:
    """Where a name is defined: a class, a function or an assignment in a module."""

    module: Module
    node: ast.ClassDef | ast.FunctionDef | ast.expr


@dataclass(frozen=True)
class Parameter:
    """One argument of a target."""

    required: bool
    annotation: ast.expr | None
    module: Module
    default: ast.expr | None = None


@dataclass(frozen=True)
class Signature:
    """The arguments of a target; `open` if it also takes names that the source does not list."""

    parameters: dict[str, Parameter]
    open: bool


def _find_spec(name: str) -> ModuleSpec | None:
    """Find a module as an import would, without importing anything."""
    search, spec = module_path(), None
    for part in name.split("."):
        # only this part of the name: for a dotted name, a folder without __init__.py would need its parent imported
        spec = PathFinder.find_spec(part, search)
        if spec is None:
            return None
        search = list(spec.submodule_search_locations or [])
    return spec


def _load_module(name: str) -> Module | None:
    spec = _find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin)
    return _parse(name, path, path.stat().st_mtime_ns)


@cache
def _parse(name: str, path: Path, mtime_ns: int) -> Module:
    return Module(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path)))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the top-level statements, with those under `if` and `try`."""
    for statement in body:
        yield statement
        for block in ("body", "orelse", "finalbody"):
            if isinstance(statement, ast.If | ast.Try):
                yield from _statements(getattr(statement, block, []))


def _absolute_name(module: Module, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    base = module.package.split(".")[: len(module.package.split(".")) - statement.level + 1]
    return ".".join([*base, *([statement.module] if statement.module else [])])


def find_definition(
    module_name: str, name: str, visited: frozenset[tuple[str, str]] = frozenset()
) -> Definition | str | None:
    """Find `name` in a module: its definition, or the dotted path of the module or plain type that it stands for."""
    module = _load_module(module_name)
    if module is None or (module_name, name) in visited:  # an import cycle
        return None
    visited |= {(module_name, name)}
    for statement in reversed(list(_statements(module.tree.body))):  # the last one wins, as in Python
        match statement:
            case ast.ClassDef() | ast.FunctionDef() if statement.name == name:
                return Definition(module, statement)
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                return Definition(module, value)
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value) if target == name:
                return Definition(module, value)
            case ast.Import(names=names):
                for alias in names:
                    if (alias.asname or alias.name.split(".")[0]) == name:
                        return alias.name if alias.asname else name
            case ast.ImportFrom(names=names):
                source = _absolute_name(module, statement)
                for alias in names:
                    if alias.name == "*" and (definition := find_definition(source, name, visited)):
                        return definition
                    if (alias.asname or alias.name) == name:
                        return _follow(source, alias.name, visited)
    return None


def _follow(module_name: str, name: str, visited: frozenset[tuple[str, str]] = frozenset()) -> Definition | str | None:
    """Find `name` in a module, or as a submodule of a package."""
    path = f"{module_name}.{name}"
    if module_name in PLAIN_MODULES:
        return path
    return find_definition(module_name, name, visited) or (path if _load_module(path) else None)


def locate(target: str) -> Definition | None:
    """Find the class or function that a dotted path names, through re-exports; None if the source does not show it."""
    module_name, *names = target.split(".")
    definition: Definition | str | None = module_name
    for name in filter(None, names):
        if not isinstance(definition, str):  # an attribute of a class, or an unknown name
            return None
        definition = _follow(definition, name)
    return definition if isinstance(definition, Definition) else None


def module_exists(name: str) -> bool:
    """Return whether a module with this name can be found, as source or compiled, without importing it."""
    return _find_spec(name) is not None or name.split(".")[0] in sys.builtin_module_names


def public_names(module_name: str) -> list[str]:
    """List the classes and functions that a module defines, or that a package re-exports."""
    module = _load_module(module_name)
    names: list[str] = []
    for statement in _statements(module.tree.body) if module else []:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            names.append(statement.name)
        elif isinstance(statement, ast.ImportFrom) and module and module.path.name == "__init__.py":
            names += [alias.asname or alias.name for alias in statement.names]
    return [name for name in names if not name.startswith("_")]


def signature(target: str) -> Signature | None:
    """Read the arguments of a target from its source; None if the source does not show them."""
    match locate(target):
        case Definition(module, ast.FunctionDef() as node):
            return _function_signature(module, node, skip_self=False)
        case Definition(module, ast.ClassDef() as node):
            return _class_signature(module, node)
    return None


def takes(target: Any, name: str) -> bool:
    """Return whether the source of a target lists an argument; arguments within `**kwargs` are not listed."""
    target_signature = signature(target) if isinstance(target, str) else None
    return target_signature is not None and name in target_signature.parameters


def class_attribute(target: str, name: str) -> Any:
    """Return the literal value of a class attribute from the class, or from the first base that sets it, or None."""
    return _class_attribute(locate(target), name)


def _class_attribute(definition: Definition | str | None, name: str) -> Any:
    if not isinstance(definition, Definition) or not isinstance(definition.node, ast.ClassDef):
        return None
    for statement in definition.node.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=attribute)], value=value) if attribute == name:
                return _literal_value(value)
            case ast.AnnAssign(target=ast.Name(id=attribute), value=ast.expr() as value) if attribute == name:
                return _literal_value(value)
    bases = (_class_attribute(resolve(definition.module, base), name) for base in definition.node.bases)
    return next((value for value in bases if value is not None), None)


def method_owner(target: str, name: str) -> str | None:
    """Return the module of the class that defines a method of `target`; None if the source does not show it."""
    queue = [locate(target)]
    while queue:
        definition = queue.pop(0)
        if not isinstance(definition, Definition) or not isinstance(definition.node, ast.ClassDef):
            return None  # a base class that is not known may define it
        if any(isinstance(s, ast.FunctionDef) and s.name == name for s in _statements(definition.node.body)):
            return definition.module.name
        queue = [resolve(definition.module, base) for base in definition.node.bases] + queue
    return None


def is_subclass(target: str, base: str) -> bool:
    """Return whether, by its source, `target` is the class `base` or a direct or indirect subclass of it."""
    root, queue, visited = locate(base), [locate(target)], set()
    while queue:
        definition = queue.pop()
        if isinstance(definition, Definition) and definition.node not in visited:
            node = definition.node
            visited.add(node)
            parents = node.bases if isinstance(node, ast.ClassDef) else [node] if isinstance(node, ast.expr) else []
            queue += [resolve(definition.module, parent) for parent in parents]
    return root is not None and root.node in visited


def _literal_value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _class_signature(module: Module, node: ast.ClassDef) -> Signature | None:
    methods = {statement.name: statement for statement in node.body if isinstance(statement, ast.FunctionDef)}
    if constructor := methods.get("__new__") or methods.get("__init__"):
        signature = _function_signature(module, constructor, skip_self=True)
        call = _super_init_call(constructor)
        if signature.open and call and (base := _base_signature(module, node)):
            known_names = {*signature.parameters, *_passed_names(call, list(base.parameters))}
            inherited_parameters = {
                name: parameter for name, parameter in base.parameters.items() if name not in known_names
            }
            keyword_only = {argument.arg for argument in constructor.args.kwonlyargs}
            positional = {
                name: parameter for name, parameter in signature.parameters.items() if name not in keyword_only
            }
            return Signature(
                positional | inherited_parameters | signature.parameters, base.open
            )  # positional arguments first
        return signature
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return _dataclass_signature(module, node)
    return _base_signature(module, node) if node.bases else Signature({}, open=False)


def _base_signature(module: Module, node: ast.ClassDef) -> Signature | None:
    for base in node.bases:
        definition = resolve(module, base)
        if not isinstance(definition, Definition) or not isinstance(definition.node, ast.ClassDef):
            return None
        signature = _class_signature(definition.module, definition.node)
        if signature is None or signature.parameters or signature.open:
            return signature
    return Signature({}, open=False)


def _super_init_call(init: ast.FunctionDef) -> ast.Call | None:
    """Return the call of `super().__init__` that passes `**kwargs` on, if there is one."""
    calls = (n for n in ast.walk(init) if isinstance(n, ast.Call) and SUPER_INIT.fullmatch(ast.unparse(n.func)))
    return next((call for call in calls if any(k.arg is None for k in call.keywords)), None)


def _passed_names(call: ast.Call, names: list[str]) -> set[str]:
    """Return the names of the arguments that a call passes; `names` are the positional parameters, in order."""
    positional = takewhile(lambda argument: not isinstance(argument, ast.Starred), call.args)
    return {keyword.arg for keyword in call.keywords if keyword.arg}.union(names[: len(list(positional))])


def _function_signature(module: Module, node: ast.FunctionDef, *, skip_self: bool) -> Signature:
    spec = node.args
    positional = [*spec.posonlyargs, *spec.args][1 if skip_self else 0 :]
    defaults = [*[None] * (len(positional) - len(spec.defaults)), *spec.defaults, *spec.kw_defaults]
    parameters = {
        arg.arg: Parameter(default is None, arg.annotation, module, default)
        for arg, default in zip([*positional, *spec.kwonlyargs], defaults, strict=True)
    }
    if spec.kwarg and _refuses_unknown(node, spec.kwarg.arg):
        popped_names = [name for call in ast.walk(node) if (name := _popped_name(call, spec.kwarg.arg))]
        return Signature(parameters | {name: Parameter(False, None, module) for name in popped_names}, open=False)
    return Signature(parameters, open=spec.kwarg is not None)


def _refuses_unknown(node: ast.FunctionDef, kwargs: str) -> bool:
    """Return whether a function refuses keyword arguments that it has not popped, as torchmetrics.Metric does."""
    checks = (n for n in node.body if isinstance(n, ast.If) and ast.unparse(n.test) == kwargs)
    return any(isinstance(check.body[-1], ast.Raise) for check in checks)


def _popped_name(node: ast.AST, kwargs: str) -> str | None:
    """Return "name" if the node is `kwargs.pop("name", …)`."""
    match node:
        case ast.Call(func=ast.Attribute(ast.Name(owner), "pop"), args=[ast.Constant(str() as name), *_]):
            return name if owner == kwargs else None
    return None


def _dataclass_signature(module: Module, node: ast.ClassDef) -> Signature:
    fields = {s.target.id: s for s in node.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)}
    parameters = {name: Parameter(f.value is None, f.annotation, module) for name, f in fields.items()}
    return Signature(parameters, open=False)


def resolve(module: Module, node: ast.expr) -> Definition | str | None:
    """Find the definition, module or plain type that a name or dotted name in `module` stands for."""
    if isinstance(node, ast.Name):
        return find_definition(module.name, node.id)
    if isinstance(node, ast.Attribute):
        owner = resolve(module, node.value)
        if isinstance(owner, str):
            return _follow(owner, node.attr)
    if isinstance(node, ast.Subscript):
        return resolve(module, node.value)
    return None
