"""Multi30k: captions of pictures, and their translations."""

from itertools import chain
from typing import Any, Literal

from pydantic import DirectoryPath

from leyden.data.download import Files, Remote
from leyden.data.text.translation import SentencePairs, Translation
from leyden.errors import UserError
from leyden.preparation.lines import split_lines

Language = Literal["en", "de", "fr", "cs"]
PARTS = {"train": "train", "val": "val", "test": "test_2016_flickr"}
MULTI30K = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw"
DIGESTS = {  # sha256 of the unpacked text
    ("train", "en"): "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6",
    ("train", "de"): "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72",
    ("train", "fr"): "5925a3c18f1587b6b54b87743106e6e8ab93618edb6f65d19eac0621f853a10d",
    ("train", "cs"): "2be68b38c8d586ff4f54eb13cc6e1baaaa053695b3f070d3038303a47f2268da",
    ("val", "en"): "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227",
    ("val", "de"): "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660",
    ("val", "fr"): "5304e444d842e962b2dda4d816b70b22a1765b15401642b7ca37a67477e708dc",
    ("val", "cs"): "d53827e469b0a1ca8d57e9e26b2b64c4bc4b33f5479c7b03ae87ae5c882c3e33",
    ("test_2016_flickr", "en"): "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
    ("test_2016_flickr", "de"): "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
    ("test_2016_flickr", "fr"): "cb3160d69b002bb638e66cc7612fcd56cb0af82eadc9c142dedc438afb885ef6",
    ("test_2016_flickr", "cs"): "45adb85f688de8407fddcbe1b36dca15d12aab868149b337e2576f2d6d2ff8d8",
}


def remote(part: str, language: str) -> Remote:
    """Return the file of Multi30k with one part (train, val or test_2016_flickr) in one language."""
    return Remote.on((MULTI30K,), f"{part}.{language}.gz", f"sha256:{DIGESTS[part, language]}", unpacked=True)


class Multi30k(Translation):
    """Captions of pictures in four languages (Elliott et al. 2016, task 1): 29,000 train, 1,014 val, 1,000 test.

    The files lie in `data_dir`/multi30k, by default in $LEYDEN_DATA or ~/.cache/leyden; missing files are
    downloaded. For research and education, not for commercial use. The other arguments are those of `Translation`.
    """

    folder = "multi30k"
    remotes = tuple(remote(part, language) for part in PARTS.values() for language in ("de", "en"))  # by default

    def __init__(
        self, source: Language = "de", target: Language = "en", data_dir: DirectoryPath | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if source == target:
            raise UserError(f"data.source and data.target are both {source}: choose two languages")
        self._remotes = {name: (remote(part, source), remote(part, target)) for name, part in PARTS.items()}
        self._downloads = Files(self.folder, tuple(chain(*self._remotes.values())), data_dir=data_dir)

    def read(self) -> dict[str, SentencePairs]:
        """Read the six files, verified by their digests."""
        splits = {}
        for name, remotes in self._remotes.items():
            (path, content), (target_path, target_content) = map(self._downloads.read_verified, remotes)
            lines = split_lines(content, path), split_lines(target_content, target_path)
            splits[name] = SentencePairs.from_lines(*lines, (str(path), str(target_path)))
        return splits
