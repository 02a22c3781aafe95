"""The source files of the project that a run has imported: its results come from them and its config."""

import hashlib
import sys
from pathlib import Path

from leyden.config.user_code import is_user_code


def project_files() -> dict[str, Path]:
    """Return the source files of the project's loaded modules, by module name.

    Module names are the same in the copy of the project that a job of a sweep or of SLURM runs. `__main__` is left out,
    since it is whatever program was started.
    """
    files = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__dict__", {}).get("__file__")
        is_module = isinstance(file, str) and name not in ("__main__", "__mp_main__")
        if is_module and is_user_code(file) and Path(file).is_file():
            files[name] = Path(file)
    return files


def digests(files: dict[str, Path]) -> dict[str, str]:
    """Return the sha256 of each file."""
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(files.items())}
