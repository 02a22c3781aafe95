"""Japanese Vowels: who of nine men says `ae`?"""

from importlib.util import find_spec
from pathlib import Path

from leyden.data.sequences.sequences import Examples, Sequences
from leyden.data.sequences.ts_file import read_ts
from leyden.errors import UserError


class JapaneseVowels(Sequences):
    """Utterances of 7 to 29 frames with 12 cepstral coefficients each, by nine speakers (Kudo et al. 1999).

    270 to train on, 30 of each speaker, and 370 to test; the files are those that sktime carries.
    """

    @property
    def classes(self) -> list[str]:
        """The speakers, as they are numbered in the files."""
        return [str(speaker) for speaker in range(1, 10)]

    def read(self) -> tuple[Examples, Examples]:
        """Read the two files of sktime, without importing it."""
        spec = find_spec("sktime")
        if spec is None or spec.origin is None:
            raise UserError("data=japanese_vowels reads files that sktime carries: pip install 'leyden[series]'")
        folder = Path(spec.origin).parent / "datasets" / "data" / "JapaneseVowels"
        files = [read_ts(folder / f"JapaneseVowels_{part}.ts") for part in ("TRAIN", "TEST")]
        train, test = (Examples(file.series, file.labels) for file in files)
        return train, test
