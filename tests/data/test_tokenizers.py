"""Decoding gives back the text that was encoded, for every kind of tokenizer, at once or token by token."""

import functools
import json
import random
import sys
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.errors import UserError
from leyden.preparation import tokenizers
from leyden.preparation.tokenizers import Bytes, Characters, Tokenizer, learn, restore
from support.text import PROSE, require_tokenizers


@pytest.fixture(params=["byte", "char", "bpe", "word"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param in ("bpe", "word"):
        require_tokenizers()
    return learn(request.param, PROSE, vocab_size=300)


def test_decoding_gives_back_what_was_encoded(tokenizer: Tokenizer):
    ids = tokenizer.encode(PROSE)
    assert ids.min() >= 0
    assert ids.max() < tokenizer.vocab_size
    decoded = tokenizer.decode(ids)
    if tokenizer.state_dict()["kind"] == "word":
        decoded = decoded.replace(" \n", "\n")  # a word ends with a space
    assert decoded == PROSE


def test_a_tokenizer_comes_back_from_plain_data(tokenizer: Tokenizer):
    state = json.loads(json.dumps(tokenizer.state_dict()))
    assert np.array_equal(restore(state).encode(PROSE), tokenizer.encode(PROSE))
    assert restore(state).pieces == tokenizer.pieces


@settings(max_examples=60, deadline=None)
@given(st.text(), st.randoms())
def test_a_stream_of_tokens_is_the_text_and_never_half_a_character(text: str, rng: random.Random):
    for tokenizer in (Bytes(), Characters(text + "a")):
        ids = tokenizer.encode(text).tolist()
        stream = tokenizer.stream()
        shown = [stream.push(token) for token in ids]
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in shown)
        assert "".join(shown) + stream.end() == text
    noise = [rng.randrange(256) for _ in range(20)]  # what a model may write: bytes that are no UTF-8
    stream = Bytes().stream()
    assert "".join(map(stream.push, noise)) + stream.end() == Bytes().decode(noise)


@settings(max_examples=30, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_byte_pairs_leave_nothing_unknown(text: str):
    require_tokenizers()
    bpe = learn("bpe", PROSE, vocab_size=280)
    ids = bpe.encode(text).tolist()
    stream = bpe.stream()
    assert bpe.decode(ids) == text == "".join(map(stream.push, ids)) + stream.end()


def test_words_are_split_at_spaces_and_the_rare_are_unknown():
    require_tokenizers()
    words = learn("word", "The cat  saw\tthe dog\nthe cat saw <unk>\n", vocab_size=100, lowercase=True, min_frequency=2)
    assert sorted(words.pieces) == [b"\n", b"<unk> ", b"cat ", b"saw ", b"the "]
    assert words.decode(words.encode("THE bird saw\n")) == "the <unk> saw \n"


def test_characters_are_those_of_the_training_text_in_order():
    characters = learn("char", "hello\n", vocab_size=5)
    assert characters.pieces == [b"\n", b"e", b"h", b"l", b"o"]
    with pytest.raises(UserError, match=r"2 characters outside the vocabulary: 'Z', 'é'; it holds '\\nehlo'"):
        characters.encode("hé, Zoé".replace(", ", "l"))


@pytest.mark.parametrize(("text", "start"), [("a\nb ", "\n"), ("a b", " "), ("ab", "a")])
def test_an_empty_prompt_begins_a_line_or_a_word(text: str, start: str):
    assert Characters(text).decode(Characters(text).prompt("")) == start


def test_without_the_library_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'leyden\[text\]'$"):
        learn("bpe", PROSE, vocab_size=300)


@settings(deadline=None)
@given(st.text(alphabet="ab \n\té", max_size=200), st.integers(2, 30))
def test_a_long_line_is_cut_where_tokens_are(text: str, limit: int):
    require_tokenizers()
    bpe = small_bpe()
    with mock.patch.object(tokenizers, "LONG_LINE", limit):
        parts = list(tokenizers._lines(text))
        ids = bpe.encode(text)
    assert "".join(parts) == text
    assert ids.tolist() == bpe.encode(text).tolist()


@functools.cache
def small_bpe() -> Tokenizer:
    return learn("bpe", "ab a  b\tab ba é a ab\n  a b" * 9, 280)
