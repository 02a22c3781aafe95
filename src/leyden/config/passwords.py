"""Passwords, which a run's folder does not keep: what is written there is copied, shared and shown."""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf
from omegaconf.resolvers import oc

from leyden.errors import UserError

# postgresql://me:secret@host/name
ADDRESS = re.compile(r"(?P<before>://[^/\s:@]*:)(?P<password>(?!\$\{)[^/\s@]+)(?=@)")
KEYS = re.compile(r"(^|_)(api_?key|passwd|password|secret|(access|auth)_token)$")
VARIABLES = re.compile(r"secret|passw|passphrase|credential|api_?key|token$|token_|_pwd$|(^|_)key(_|$)", re.IGNORECASE)
INSTEAD = "a run's folder keeps no passwords"


def masked(text: str) -> str:
    """Return a text with *** for the passwords in its addresses."""
    return ADDRESS.sub(r"\g<before>***", text)


def problems(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted path of each password in a config, and that it does not belong there."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        here = f"{path}.{key}" if path else str(key)
        if isinstance(value, str) and ADDRESS.search(value):
            yield here, f"{here}={masked(value)}: {INSTEAD}: leave it to the library's own environment variable or file"
        elif isinstance(value, str) and value and KEYS.search(str(key)):
            yield here, f"{here}=***: {INSTEAD}: leave it to the library's own environment variable or file"
        yield from problems(value, here)


def variable(name: str, *default: Any) -> Any:
    """Return a variable of the environment for `${oc.env:NAME}` in a config, but no password.

    Raises:
        UserError: for a name that says that there is a password in it.
        KeyError: for one that is not set and has no default.
    """
    if VARIABLES.search(name):
        raise UserError(f"${{oc.env:{name}}}: {INSTEAD}, and a config reads none from the environment")
    return oc.env(name, *default)


def guard() -> None:
    """Have `${oc.env:NAME}` read no passwords from here on, in leyden's commands but not in other applications."""
    OmegaConf.register_new_resolver("oc.env", variable, replace=True)
