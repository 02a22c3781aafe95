"""Passwords, which a run's folder does not keep: what is written there is copied, shared and shown."""

import re
from collections.abc import Iterator
from typing import Any

ADDRESS = re.compile(
    r"(?P<before>://[^/\s:@]*:)(?P<password>(?!\$\{)[^/\s@]+)(?=@)"
)  # postgresql://me:secret@host/name
KEYS = re.compile(r"(^|_)(api_?key|passwd|password|secret|(access|auth)_token)$")
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
