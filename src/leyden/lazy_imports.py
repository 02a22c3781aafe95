"""Import the public names of leyden's packages on their first use, so that importing a package is cheap."""

import ast
import importlib
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1]


@cache
def public_names(package: str) -> dict[str, str]:
    """Return the public names of a package, each with the module that defines it, without importing either.

    They are the names that its `__init__.py` imports below `if TYPE_CHECKING:`, where type checkers see them too.
    """
    tree = ast.parse(SOURCE.joinpath(*package.split("."), "__init__.py").read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def lazy_imports(package: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package (PEP 562), which imports the module of a public name on its first use."""

    def get(name: str) -> Any:
        module = public_names(package).get(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(module), name)
        setattr(sys.modules[package], name, value)  # later uses do not call `get`
        return value

    return get
