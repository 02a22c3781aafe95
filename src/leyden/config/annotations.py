"""Check plain values with pydantic against the annotations of parameters, which are read from source."""

import ast
import builtins
import importlib
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from leyden.config.signatures import PLAIN_MODULES, Definition, Module, Parameter, find_definition, resolve

PLAIN_BUILTINS = {"int", "float", "str", "bool", "list", "dict", "tuple", "set", "bytes", "object"}

NEEDS_TARGET = "must be a node with a _target_"


def _with_target(node: dict[str, Any]) -> dict[str, Any]:
    if "_target_" not in node:
        raise ValueError(NEEDS_TARGET)
    return node


# The type of a parameter that takes an object: plain data must describe it by a _target_.
Instance = Annotated[dict[str, Any], AfterValidator(_with_target)]


def _type_of(module: Module, node: ast.expr | None) -> Any:
    """Turn an annotation into a type that pydantic knows; `Any` if the source does not show it."""
    match node:
        case None:
            return Any
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=str(text)):
            return _type_of(module, ast.parse(text, mode="eval").body)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _subscript(Union, (_type_of(module, left), _type_of(module, right)))
        case ast.Subscript(value=value, slice=index):
            return _generic_type(module, value, index)
        case ast.Name(id=name) if name in PLAIN_BUILTINS and find_definition(module.name, name) is None:
            return getattr(builtins, name)
        case ast.Name() | ast.Attribute():
            return _named_type(resolve(module, node))
    return Any


def _generic_type(module: Module, value: ast.expr, index: ast.expr) -> Any:
    origin = _type_of(module, value)
    if origin is Literal:
        return _subscript(Literal, ast.literal_eval(index))
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    if origin is Annotated:
        return _subscript(
            Annotated, (_type_of(module, parts[0]), *(_build_constraint(module, part) for part in parts[1:]))
        )
    if origin in (Any, Instance):
        return origin
    arguments = tuple(... if isinstance(p, ast.Constant) and p.value is ... else _type_of(module, p) for p in parts)
    return _subscript(origin, arguments if len(arguments) > 1 else arguments[0])


def _subscript(form: Any, arguments: Any) -> Any:
    try:
        return form[arguments]
    except TypeError:  # the interpreter does not know it as a generic type
        return Any


def _build_constraint(module: Module, call: ast.expr) -> Any:
    """Build a constraint such as `Field(ge=0)` from an annotation."""
    if not isinstance(call, ast.Call):
        return None
    path = resolve(module, call.func)
    owner, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    if owner not in PLAIN_MODULES:  # importing another module would run untrusted code
        return None
    keywords = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
    return getattr(importlib.import_module(owner), name)(*map(ast.literal_eval, call.args), **keywords)


def _named_type(definition: Definition | str | None) -> Any:
    if isinstance(definition, str):
        owner, _, name = definition.rpartition(".")
        if owner not in PLAIN_MODULES or name == "ImportString":  # an ImportString imports whatever the config says
            return Any
        kind = getattr(importlib.import_module(owner), name, Any)
        return Instance if getattr(kind, "__name__", "") == "Callable" else kind
    if definition is None:
        return Any
    if isinstance(definition.node, ast.ClassDef):
        bases = {ast.unparse(base).rpartition(".")[2] for base in definition.node.bases}
        return Any if any("Enum" in base or base == "str" for base in bases) else Instance
    if isinstance(definition.node, ast.expr) and not isinstance(definition.node, ast.Call):
        return _type_of(definition.module, definition.node)  # an alias
    return Any


@cache
def _adapter(parameter: Parameter) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(_type_of(parameter.module, parameter.annotation))
    except (PydanticUserError, TypeError, ValueError, SyntaxError, RecursionError):
        return None  # only the interpreter understands this annotation


def bare_message(details: ErrorDetails) -> str:
    """Return a message from pydantic without its prefix."""
    return details["msg"].removeprefix("Input ").removeprefix("Value error, ")


def _reasons(errors: list[ErrorDetails]) -> Iterator[str]:
    """Yield what is wrong with a value; the choices of several literals become one list, as do missing items."""
    missing_items = [details["loc"][-1] for details in errors if details["type"] == "missing"]
    choices = [str(details["ctx"]["expected"]) for details in errors if details["type"] == "literal_error"]
    if len(choices) > 1:
        names = dict.fromkeys(name.strip("'") for text in choices for name in re.split(", | or ", text))
        yield f"should be one of {', '.join(names)}"
    for details in errors:
        if details["type"] == "missing" and isinstance(details["loc"][-1], int):
            yield f"should have {1 + max(item for item in missing_items if isinstance(item, int))} values"
        elif details["type"] != "literal_error" or len(choices) == 1:
            yield bare_message(details)


def _unlike_default(parameter: Parameter, value: Any) -> str | None:
    """Return a complaint if the default of a parameter without annotation is a number but the value is text."""
    default = parameter.default.value if isinstance(parameter.default, ast.Constant) else None
    if isinstance(value, str) and isinstance(default, int | float) and not isinstance(default, bool):
        return f"should be a number, like its default {default}; an annotation of the argument allows others"
    return None


def complaint(parameter: Parameter, value: Any) -> str | None:
    """Say why plain config data `value` does not fit a parameter's annotation or default, or None if it does."""
    if isinstance(value, dict) and "_target_" in value:
        return None
    if parameter.annotation is None:
        return _unlike_default(parameter, value)
    adapter = _adapter(parameter)
    if adapter is None:
        return None
    try:
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        reasons = dict.fromkeys(_reasons(error.errors()))
        if set(reasons) == {"Path does not point to a file", "Path does not point to a directory"}:
            return "there is no such file or folder"
        if len(reasons) > 1:
            reasons.pop(NEEDS_TARGET, None)
        return " or ".join(reasons).replace(" or should be ", " or ")
    return None
