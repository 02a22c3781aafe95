"""Texts as token files, which are made once, stored in the data root, and mapped into memory."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

from leyden.data.download import data_root
from leyden.errors import UserError
from leyden.files.folders import open_folder, write_folder
from leyden.files.formats import TOKENS
from leyden.preparation.tokenizers import Tokenizer, restore


class Tokens(NamedTuple):
    """The token ids of one part of a text."""

    ids: np.ndarray  # (N,) uint8, uint16 or int32, by the size of the vocabulary
    chars_per_token: float  # the average over this part
    sha256: str  # digest of the ids


def tokenise_once(
    identity: dict[str, Any], make: Callable[[], tuple[Tokenizer, dict[str, str]]]
) -> tuple[Tokenizer, dict[str, Tokens]]:
    """Return the tokenizer and the tokens stored for `identity`, plain data; if there are none, `make` them first.

    `make` returns a tokenizer, and the texts to encode. The files lie in `data_root()`/tokens/<sha256 of the identity>.
    One of several processes makes them, and the folder appears whole or not at all.

    Raises:
        UserError: if they cannot be written.
    """
    folder = _folder(identity)
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not folder.is_dir():
                    _write(folder, *make())
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror}): set LEYDEN_DATA to another folder"
            ) from error
    result = load_tokens(identity)
    assert result, f"{folder} was there a moment ago"
    return result


def load_tokens(identity: dict[str, Any]) -> tuple[Tokenizer, dict[str, Tokens]] | None:
    """Return what `tokenise_once` does, or None if the files have not been made.

    Raises:
        UserError: if they are damaged or of another format.
    """
    folder = _folder(identity)
    if not folder.is_dir():
        return None
    open_folder(folder, TOKENS)
    try:
        facts = json.loads((folder / "facts.json").read_bytes())
        splits = {
            # copy on write, because torch warns about read-only maps
            split: Tokens(np.load(folder / f"{split}.npy", mmap_mode="c"), **split_facts)
            for split, split_facts in facts["splits"].items()
        }
        return restore(facts["tokenizer"]), splits
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exceptions for files that it cannot read
        raise UserError(f"{folder} is damaged: {TOKENS.remedy}") from error


def _folder(identity: dict[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps([TOKENS.number, identity], sort_keys=True).encode()).hexdigest()[:32]
    return data_root() / "tokens" / name


def _write(folder: Path, tokenizer: Tokenizer, texts: dict[str, str]) -> None:
    size = tokenizer.vocab_size
    dtype = np.uint8 if size <= 1 << 8 else np.uint16 if size <= 1 << 16 else np.int32
    with write_folder(folder, TOKENS) as temporary:
        splits = {}
        for split, text in texts.items():
            try:
                ids = tokenizer.encode(text).astype(dtype)
            except UserError as error:
                raise UserError(f"the {split} part: {error}; data.tokenizer=byte knows every text") from None
            np.save(temporary / f"{split}.npy", ids)
            chars_per_token = len(text) / max(1, len(ids))
            splits[split] = {"chars_per_token": chars_per_token, "sha256": hashlib.sha256(ids).hexdigest()}
        facts = {"tokenizer": tokenizer.state_dict(), "splits": splits}
        (temporary / "facts.json").write_text(json.dumps(facts))
