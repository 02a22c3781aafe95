"""Format numbers of all kinds of files that outlive their process; files with unsupported numbers are refused.

A number also covers neighbouring files: the manifest's number covers config.yaml, metrics.jsonl and the folders of a
run, and a checkpoint's number covers the plain part of a sharded one. It is raised when the layout changes. Tables,
pictures, traces and weights for other programs have the format of their extension, and leyden never reads them back.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from leyden.console import complain
from leyden.errors import UserError

KEY = "format"  # the key of the number in every file
UNNUMBERED = 0  # files that leyden wrote before its formats had numbers


class Format(NamedTuple):
    """The format of one kind of file."""

    kind: str
    number: int  # the number that this leyden writes
    remedy: str  # what to do with a file of an older format
    older_numbers: tuple[int, ...] = ()  # accepted too, since the parts that are read are unchanged

    def stamp(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content of a file with this format number as its first key."""
        return {KEY: self.number, **{key: value for key, value in content.items() if key != KEY}}

    def check(self, path: Path | str, content: Mapping[str, Any]) -> None:
        """Check the format number of a file; the first file of a kind without a number is reported.

        Raises:
            UserError: if this leyden does not read the format.
        """
        number = content.get(KEY, UNNUMBERED)
        if type(number) is int and number == self.number:
            return
        if type(number) is not int or number not in self.older_numbers:
            is_newer = type(number) is int and number > self.number
            readable = " and ".join(map(str, (*(n for n in self.older_numbers if n != UNNUMBERED), self.number)))
            problem = f"has format {number!r}" if KEY in content else "has no format number"
            remedy = "update leyden, since a newer one wrote it" if is_newer else self.remedy
            raise UserError(f"{path} {problem}, but of {self.kind} this leyden reads format {readable}: {remedy}")
        if number == UNNUMBERED and self.kind not in _reported:
            _reported.add(self.kind)
            complain(f"{path} has no format number, since an earlier leyden wrote it: read as format {self.number}")


_reported: set[str] = set()  # kinds whose first unnumbered file was reported

USE_OLD_LEYDEN = "use the leyden that wrote it"
MANIFEST = Format("manifests", 1, USE_OLD_LEYDEN, (UNNUMBERED,))
STATUS = Format("statuses", 1, USE_OLD_LEYDEN, (UNNUMBERED,))
CHECKPOINT = Format("checkpoints", 1, USE_OLD_LEYDEN, (UNNUMBERED,))
SCHEMA = Format("schemas", 1, "train the model again")
STUDY = Format("studies of sweeps", 1, USE_OLD_LEYDEN, (UNNUMBERED,))
SUBMISSION = Format("submissions", 1, "remove it, and leyden submit writes it anew", (UNNUMBERED,))
WANDB = Format("W&B's identities", 1, "remove it, and the run gets another page", (UNNUMBERED,))
EVALUATION = Format("evaluations", 1, "leyden evaluate makes another")
PREDICTIONS = Format("predictions", 1, "leyden evaluate --save-predictions makes others")
ANSWER_PARTS = Format("parts of answers", 1, "remove its folder, or name another --out")
MEASUREMENTS = Format("measurements", 1, "leyden find makes others")
REFERENCE = Format("references", 2, "remove it, and the real pictures are measured again", (UNNUMBERED,))
TOKENS = Format("token files", 3, "remove the folder, and it is made anew from the texts")
