"""What a target takes, read from its source: signatures and types without importing torch.

A target is a dotted path to a class or function. Its file is found as an import would find it, parsed, and its
annotations are turned into types that pydantic can check plain config data against. What the source does not
tell (compiled code, `**kwargs`, unknown decorators) is left to the call itself.
"""

import ast
import builtins
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, PydanticUserError, TypeAdapter, ValidationError

from leyden.config.locations import module_path

# Modules whose names are types by themselves, cheap to import.
PLAIN_MODULES = {"typing", "typing_extensions", "pydantic", "annotated_types", "pathlib", "datetime", "collections.abc"}
PLAIN_BUILTINS = {"int", "float", "str", "bool", "list", "dict", "tuple", "set", "bytes", "object"}


NEEDS_TARGET = "must be a node with a _target_"


def _built(node: dict) -> dict:
    if "_target_" not in node:
        raise ValueError(NEEDS_TARGET)
    return node


Instance = Annotated[dict, AfterValidator(_built)]  # an object, which plain data can only describe by a _target_


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

    name: str
    required: bool
    annotation: ast.expr | None
    module: Module


@dataclass(frozen=True)
class Signature:
    """The arguments of a target; `open` when it also takes names that the source does not list."""

    parameters: dict[str, Parameter]
    open: bool


def _spec(name: str) -> ModuleSpec | None:
    """Find module `name` as an import would, without importing anything."""
    search, spec = module_path(), None
    for depth in range(1, name.count(".") + 2):
        spec = PathFinder.find_spec(".".join(name.split(".")[:depth]), search)
        if spec is None:
            return None
        search = list(spec.submodule_search_locations or [])
    return spec


def _module(name: str) -> Module | None:
    """Parse the source of module `name`."""
    spec = _spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin)
    return _parsed(name, path, path.stat().st_mtime_ns)


@cache
def _parsed(name: str, path: Path, changed: int) -> Module:
    return Module(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path)))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield top-level statements, those under `if` and `try` too."""
    for statement in body:
        yield statement
        for block in ("body", "orelse", "finalbody"):
            if isinstance(statement, ast.If | ast.Try):
                yield from _statements(getattr(statement, block, []))


def _absolute(module: Module, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    base = module.package.split(".")[: len(module.package.split(".")) - statement.level + 1]
    return ".".join([*base, *([statement.module] if statement.module else [])])


def _find(module_name: str, name: str) -> Definition | str | None:
    """Find `name` in a module: its definition, or the dotted path of a module or plain type that it stands for."""
    return _search(module_name, name, frozenset())


def _search(module_name: str, name: str, seen: frozenset[tuple[str, str]]) -> Definition | str | None:
    module = _module(module_name)
    if module is None or (module_name, name) in seen:  # an import cycle
        return None
    seen |= {(module_name, name)}
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
                source = _absolute(module, statement)
                for alias in names:
                    if alias.name == "*" and (found := _search(source, name, seen)):
                        return found
                    if (alias.asname or alias.name) == name:
                        return _follow(source, alias.name, seen)
    return None


def _follow(module_name: str, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> Definition | str | None:
    """Find `name` in a module, or as a submodule of a package."""
    path = f"{module_name}.{name}"
    if module_name in PLAIN_MODULES:
        return path
    return _search(module_name, name, seen) or (path if _module(path) else None)


def locate(target: str) -> Definition | None:
    """Find the class or function that a dotted path names, through re-exports; None if the source does not tell."""
    found: Definition | str | None = None
    head, _, rest = target.partition(".")
    current = head
    for part in filter(None, rest.split(".")):
        if isinstance(found, Definition):
            return None  # an attribute of a class
        found = _follow(current, part)
        if isinstance(found, str):
            current, found = found, None
        elif found is None:
            return None
    return found if isinstance(found, Definition) else None


def module_exists(name: str) -> bool:
    """Tell whether a module of this name can be found, compiled ones too, without importing it."""
    return _spec(name) is not None or name.split(".")[0] in sys.builtin_module_names


def public_names(module_name: str) -> list[str]:
    """List the classes and functions that a module defines, and a package re-exports."""
    module = _module(module_name)
    names: list[str] = []
    for statement in _statements(module.tree.body) if module else []:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            names.append(statement.name)
        elif isinstance(statement, ast.ImportFrom) and module and module.path.name == "__init__.py":
            names += [alias.asname or alias.name for alias in statement.names]
    return [name for name in names if not name.startswith("_")]


def signature(target: str) -> Signature | None:
    """Read the arguments of a target from its source; None when the source does not tell."""
    definition = locate(target)
    if definition is None:
        return None
    if isinstance(definition.node, ast.FunctionDef):
        return _function_signature(definition.module, definition.node, skip_self=False)
    if isinstance(definition.node, ast.ClassDef):
        return _class_signature(definition.module, definition.node)
    return None


def class_attribute(target: str, name: str) -> Any:
    """Read a plain value that a class, or the first of its bases that has one, gives an attribute; None without one."""
    return _class_attribute(locate(target), name)


def _class_attribute(definition: Definition | str | None, name: str) -> Any:
    if not isinstance(definition, Definition) or not isinstance(definition.node, ast.ClassDef):
        return None
    for statement in definition.node.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                return _literal(value)
            case ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as value) if found == name:
                return _literal(value)
    bases = (_class_attribute(_resolve(definition.module, base), name) for base in definition.node.bases)
    return next((value for value in bases if value is not None), None)


def is_subclass(target: str, base: str) -> bool:
    """Tell from the source whether `target` is the class `base`, or has it among its bases, theirs included."""
    root, waiting, visited = locate(base), [locate(target)], set()
    while waiting:
        definition = waiting.pop()
        if isinstance(definition, Definition) and definition.node not in visited:
            node = definition.node
            visited.add(node)
            parents = node.bases if isinstance(node, ast.ClassDef) else [node] if isinstance(node, ast.expr) else []
            waiting += [_resolve(definition.module, parent) for parent in parents]
    return root is not None and root.node in visited


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _class_signature(module: Module, node: ast.ClassDef) -> Signature | None:
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            own = _function_signature(module, statement, skip_self=True)
            call = _passing_kwargs_up(statement)
            if own.open and call and (base := _base_signature(module, node)):
                given = _given(call, list(base.parameters))
                left = {name: parameter for name, parameter in base.parameters.items() if name not in given}
                return Signature(left | own.parameters, base.open)
            return own
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return _dataclass_signature(module, node)
    return _base_signature(module, node) if node.bases else Signature({}, open=False)


def _base_signature(module: Module, node: ast.ClassDef) -> Signature | None:
    for base in node.bases:
        definition = _resolve(module, base)
        if not isinstance(definition, Definition) or not isinstance(definition.node, ast.ClassDef):
            return None
        found = _class_signature(definition.module, definition.node)
        if found is None or found.parameters or found.open:
            return found
    return Signature({}, open=False)


def _passing_kwargs_up(init: ast.FunctionDef) -> ast.Call | None:
    """Return the call of the base's constructor, if it is given all other arguments."""
    calls = (n for n in ast.walk(init) if isinstance(n, ast.Call) and ast.unparse(n.func) == "super().__init__")
    return next((call for call in calls if any(k.arg is None for k in call.keywords)), None)


def _given(call: ast.Call, names: list[str]) -> set[str]:
    """Return which arguments, of those that can be given by position in this order, a call gives itself."""
    plain = [not isinstance(argument, ast.Starred) for argument in call.args]
    return {k.arg for k in call.keywords if k.arg} | set(names[: plain.index(False) if False in plain else len(plain)])


def _function_signature(module: Module, node: ast.FunctionDef, *, skip_self: bool) -> Signature:
    spec = node.args
    positional = [*spec.posonlyargs, *spec.args][1 if skip_self else 0 :]
    first_default = len(positional) - len(spec.defaults)
    parameters = {
        arg.arg: Parameter(arg.arg, position < first_default, arg.annotation, module)
        for position, arg in enumerate(positional)
    }
    for arg, default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True):
        parameters[arg.arg] = Parameter(arg.arg, default is None, arg.annotation, module)
    return Signature(parameters, open=spec.kwarg is not None)


def _dataclass_signature(module: Module, node: ast.ClassDef) -> Signature:
    fields = {s.target.id: s for s in node.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)}
    parameters = {name: Parameter(name, f.value is None, f.annotation, module) for name, f in fields.items()}
    return Signature(parameters, open=False)


def _resolve(module: Module, node: ast.expr) -> Definition | str | None:
    """Find what a name or dotted name in `module` stands for."""
    if isinstance(node, ast.Name):
        return _find(module.name, node.id)
    if isinstance(node, ast.Attribute):
        owner = _resolve(module, node.value)
        if isinstance(owner, str):
            return _follow(owner, node.attr)
    if isinstance(node, ast.Subscript):
        return _resolve(module, node.value)
    return None


def _type(module: Module, node: ast.expr | None) -> Any:
    """Turn an annotation into a type that pydantic knows; `Any` for what the source does not tell."""
    match node:
        case None:
            return Any
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=str(text)):
            return _type(module, ast.parse(text, mode="eval").body)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _subscript(Union, (_type(module, left), _type(module, right)))
        case ast.Subscript(value=value, slice=inner):
            return _generic(module, value, inner)
        case ast.Name(id=name) if name in PLAIN_BUILTINS and _find(module.name, name) is None:
            return getattr(builtins, name)
        case ast.Name() | ast.Attribute():
            return _named_type(_resolve(module, node))
    return Any


def _generic(module: Module, value: ast.expr, inner: ast.expr) -> Any:
    origin = _type(module, value)
    if origin is Literal:
        return _subscript(Literal, ast.literal_eval(inner))
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if origin is Annotated:
        return _subscript(Annotated, (_type(module, parts[0]), *(_constraint(module, part) for part in parts[1:])))
    if origin in (Any, Instance):
        return origin
    arguments = tuple(... if isinstance(p, ast.Constant) and p.value is ... else _type(module, p) for p in parts)
    return _subscript(origin, arguments if len(arguments) > 1 else arguments[0])


def _subscript(form: Any, arguments: Any) -> Any:
    try:
        return form[arguments]
    except TypeError:  # not a generic, as far as the interpreter knows
        return Any


def _constraint(module: Module, call: ast.expr) -> Any:
    """Build `Field(ge=0)` and its like from an annotation."""
    if not isinstance(call, ast.Call):
        return None
    path = _resolve(module, call.func)
    owner, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    if owner not in PLAIN_MODULES:  # others would run code of whoever wrote the annotation
        return None
    keywords = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
    return getattr(importlib.import_module(owner), name)(*map(ast.literal_eval, call.args), **keywords)


def _named_type(found: Definition | str | None) -> Any:
    if isinstance(found, str):
        owner, _, name = found.rpartition(".")
        if owner not in PLAIN_MODULES or name == "ImportString":  # which imports whatever the config says
            return Any
        kind = getattr(importlib.import_module(owner), name, Any)
        return Instance if getattr(kind, "__name__", "") == "Callable" else kind
    if found is None:
        return Any
    if isinstance(found.node, ast.ClassDef):
        text = {ast.unparse(base).rpartition(".")[2] for base in found.node.bases}
        return Any if any("Enum" in base or base == "str" for base in text) else Instance
    if isinstance(found.node, ast.expr) and not isinstance(found.node, ast.Call):
        return _type(found.module, found.node)  # an alias
    return Any


@cache
def _adapter(parameter: Parameter) -> TypeAdapter | None:
    try:
        return TypeAdapter(_type(parameter.module, parameter.annotation))
    except (PydanticUserError, TypeError, ValueError, SyntaxError, RecursionError):
        return None  # an annotation that only the interpreter understands


def complaint(parameter: Parameter, value: Any) -> str | None:
    """Say why plain config data `value` does not fit a parameter's annotation, or None if it does."""
    if parameter.annotation is None or (isinstance(value, dict) and "_target_" in value):
        return None
    adapter = _adapter(parameter)
    if adapter is None:
        return None
    try:
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        reasons = {e["msg"].removeprefix("Input ").removeprefix("Value error, "): None for e in error.errors()}
        if set(reasons) == {"Path does not point to a file", "Path does not point to a directory"}:
            return "there is no such file or folder"
        if len(reasons) > 1:
            reasons.pop(NEEDS_TARGET, None)
        return " or ".join(reasons).replace(" or should be ", " or ")
    return None
