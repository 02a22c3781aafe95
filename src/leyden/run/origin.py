"""What a run's results come from beside its config: the source files of the project whose modules it has loaded."""

import hashlib
import sys
from pathlib import Path

from leyden.config.user_code import is_own


def project_files() -> dict[str, Path]:
    """Return the source files of the project's loaded modules, by module name.

    A name stays the same where a sweep or SLURM's job runs a copy of the project. `__main__` is the program that was
    started, which may be any.
    """
    files = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__dict__", {}).get("__file__")
        if isinstance(file, str) and name not in ("__main__", "__mp_main__") and is_own(file) and Path(file).is_file():
            files[name] = Path(file)
    return files


def digests(files: dict[str, Path]) -> dict[str, str]:
    """Return the sha256 of each file."""
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(files.items())}
