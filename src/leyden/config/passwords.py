"""Keep passwords out of a run's folder, whose files are copied, shared and shown."""

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
REASON = "a run's folder keeps no passwords"


def mask(text: str) -> str:
    """Replace the password in each URL of a text with ***."""
    return ADDRESS.sub(r"\g<before>***", text)


def find_passwords(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted path of each password in a config, and the message that refuses it."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        key_path = f"{path}.{key}" if path else str(key)
        if isinstance(value, str) and ADDRESS.search(value):
            yield (
                key_path,
                f"{key_path}={mask(value)}: {REASON}: leave it to the library's own environment variable or file",
            )
        elif isinstance(value, str) and value and KEYS.search(str(key)):
            yield key_path, f"{key_path}=***: {REASON}: leave it to the library's own environment variable or file"
        yield from find_passwords(value, key_path)


def environment_variable(name: str, *default: Any) -> Any:
    """Return the environment variable that `${oc.env:NAME}` in a config reads, unless it holds a password.

    Raises:
        UserError: if the variable's name says that it holds a password.
        KeyError: if the variable is not set and there is no default.
    """
    if VARIABLES.search(name):
        raise UserError(f"${{oc.env:{name}}}: {REASON}, and a config reads none from the environment")
    return oc.env(name, *default)


def register_resolver() -> None:
    """Register `environment_variable` as the resolver of `${oc.env:NAME}` in leyden's commands only."""
    OmegaConf.register_new_resolver("oc.env", environment_variable, replace=True)
