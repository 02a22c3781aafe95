"""What a run's results come from beside its config: the source files of the project whose modules it has loaded."""

import hashlib
import sys
import sysconfig
from pathlib import Path

OWN = {"leyden", "hydra_plugins"}  # told by leyden's version
INSTALLED = {"site-packages", "dist-packages"}  # told by the packages' versions


def project_files() -> dict[str, Path]:
    """Return the source files of the project's loaded modules, by module name.

    A name stays the same where a sweep or SLURM's job runs a copy of the project. `__main__` is the program that was
    started, which may be any.
    """
    library = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
    files = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__dict__", {}).get("__file__")
        if not isinstance(file, str) or name.partition(".")[0] in {*OWN, "__main__", "__mp_main__"}:
            continue
        path = Path(file).resolve()
        installed = INSTALLED & set(path.parts) or any(path.is_relative_to(folder) for folder in library)
        if path.is_file() and not installed:
            files[name] = path
    return files


def digests(files: dict[str, Path]) -> dict[str, str]:
    """Return the sha256 of each file."""
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(files.items())}
