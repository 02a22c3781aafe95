"""`leyden adopt PATH`: write conf/ for a project that was made from lightning-hydra-template; change nothing else."""

import os
import shlex
from pathlib import Path

from leyden.adoption.source import read
from leyden.adoption.translate import translate
from leyden.adoption.write import write
from leyden.commands.arguments import Arguments
from leyden.console import put
from leyden.errors import UserError


def main(arguments: list[str]) -> int:
    """Write the project's conf/, and print what became what, what was left out, and what is left to do."""
    parser = Arguments("adopt", "Write conf/ beside configs/ of a project made from lightning-hydra-template.")
    parser.add_argument("path", metavar="PATH", type=Path, help="the project's folder, which holds configs/train.yaml")
    path = parser.parse_args(arguments).path
    if os.path.lexists(path / "conf"):
        raise UserError(f"{path / 'conf'} exists already: adopt overwrites nothing; rename it, and try again")
    source = read(path)
    files, report = translate(source)
    write(path / "conf", files)
    for line in report.lines():
        put(line)
    experiments = sorted(source.group("experiment"))
    choice = f" experiment={experiments[0]}" if experiments else ""
    put(f"{path / 'conf'} was written, and nothing else was changed. Next:")
    steps = [] if path == Path() else [f"  cd {shlex.quote(str(path))}"]
    put("\n".join([*steps, f"  leyden check{choice}", f"  leyden train{choice}"]))
    return 0
