"""Japanese Vowels: which of nine men says the vowels `ae`."""

from leyden.data.download import package_folder
from leyden.data.sequences.sequences import Examples, Sequences
from leyden.preparation.ts_file import read_ts


class JapaneseVowels(Sequences):
    """Utterances of 7 to 29 frames with 12 cepstral coefficients each, by nine speakers (Kudo et al. 1999).

    There are 270 to train on, 30 of each speaker, and 370 to test. The files come with sktime.
    """

    @property
    def classes(self) -> list[str]:
        """The speakers, as they are numbered in the files."""
        return [str(speaker) for speaker in range(1, 10)]

    def read(self) -> tuple[Examples, Examples]:
        """Read sktime's two files without importing sktime."""
        advice = "data=japanese_vowels reads files that come with sktime: pip install 'leyden[series]'"
        folder = package_folder("sktime", advice) / "datasets/data/JapaneseVowels"
        files = [read_ts(folder / f"JapaneseVowels_{part}.ts") for part in ("TRAIN", "TEST")]
        train, test = (Examples(file.series, file.labels) for file in files)
        return train, test
