"""Beam search equals the search written out over lists, and finds the best sentence when the beam is wide enough."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from leyden.models.text.beam import beam_search
from leyden.preparation.subwords import BEGIN, END, PAD


def chain(size: int, vocab: int, seed: int) -> tuple:
    """A model whose logits depend on the whole prefix: its state is a number that every token moves."""
    table = torch.randn(size, 997, vocab, generator=torch.Generator().manual_seed(seed)).double() * 2

    def step(token: Tensor, state: tuple[Tensor, ...]):
        row, place = state
        place = (place * 31 + token + 1) % 997
        return table[row, place], (row, place)

    return step, (torch.arange(size), torch.zeros(size, dtype=torch.long))


def exhaustive(step, row: int, vocab: int, longest: int, penalty: float) -> tuple[float, list[int]]:
    """Score every sequence there is."""
    best = (-math.inf, [])
    stack = [([], 0.0, (torch.tensor([row]), torch.zeros(1, dtype=torch.long)))]
    while stack:
        words, total, state = stack.pop()
        if words and (words[-1] == END or len(words) == longest):
            best = max(best, (total / ((5 + len(words)) / 6) ** penalty, words))
            continue
        logits, after = step(torch.tensor([words[-1] if words else BEGIN]), state)
        log_p = logits[0].log_softmax(0).tolist()
        stack += [([*words, word], total + log_p[word], after) for word in range(vocab)]
    return best


SEARCH = {"begin": BEGIN, "end": END, "pad": PAD}


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_a_wide_beam_is_exhaustive_and_a_narrow_one_never_better(penalty):
    vocab, longest, size = 4, 4, 12
    step, state = chain(size, vocab, seed=int(10 * penalty))
    truth = [exhaustive(step, row, vocab, longest, penalty) for row in range(size)]
    search = partial(beam_search, step, state, **SEARCH, max_length=longest, length_penalty=penalty)
    wide = search(beam_size=vocab**longest)
    assert [[w for w in row if w != PAD] for row in wide.token.tolist()] == [
        [w for w in t[1] if w != PAD] for t in truth
    ]
    scores = torch.tensor([score for score, _ in truth])
    torch.testing.assert_close(wide.score, scores, rtol=1e-5, atol=1e-5)
    narrow = [search(beam_size=k).score for k in (1, 2, 3)]
    assert all((score <= scores + 1e-5).all() for score in narrow)
    assert (narrow[0] < scores - 1e-3).any()  # greedy misses some, or this test shows nothing


def test_a_beam_of_one_is_greedy():
    vocab, size, longest = 7, 20, 12
    step, state = chain(size, vocab, seed=3)
    found = beam_search(step, state, **SEARCH, max_length=longest, length_penalty=1.0)
    for row in range(size):
        words, total, at = [BEGIN], 0.0, (torch.tensor([row]), torch.zeros(1, dtype=torch.long))
        while len(words) <= longest and words[-1] != END:
            logits, at = step(torch.tensor(words[-1:]), at)
            words.append(int(logits[0].argmax()))
            total += float(logits[0].log_softmax(0).max())
        got = found.token[row].tolist()
        assert got[: len(words) - 1] == words[1:]
        assert set(got[len(words) - 1 :]) <= {PAD}
        assert found.score[row].item() == pytest.approx(total / ((5 + len(words) - 1) / 6), rel=1e-5)


def written_out(step, row: int, beam_size: int, longest: int, penalty: float) -> tuple[float, list[int]]:
    """Beam search over lists, to its very end."""

    def score(hypothesis: tuple) -> float:
        words, total, _ = hypothesis
        return total / ((5 + len(words)) / 6) ** penalty

    def ended(words: list[int]) -> bool:
        return words[-1:] == [END] or len(words) == longest

    beam = [([], 0.0, (torch.tensor([row]), torch.zeros(1, dtype=torch.long)))]
    while not all(ended(words) for words, _, _ in beam):
        grown = [hypothesis for hypothesis in beam if ended(hypothesis[0])]
        for words, total, state in beam:
            if not ended(words):
                logits, after = step(torch.tensor([words[-1] if words else BEGIN]), state)
                log_p = logits[0].log_softmax(0).tolist()
                grown += [([*words, word], total + log_p[word], after) for word in range(len(log_p))]
        beam = sorted(grown, key=score, reverse=True)[:beam_size]
    return score(beam[0]), beam[0][0]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 3.0])
def test_the_search_equals_the_one_over_lists(penalty):
    size, longest = 25, 8
    step, state = chain(size, 5, seed=2)
    for beam_size in (2, 3):
        options = {"beam_size": beam_size, "max_length": longest, "length_penalty": penalty}
        found = beam_search(step, state, **SEARCH, **options)
        for row in range(size):
            score, words = written_out(step, row, beam_size, longest, penalty)
            assert found.token[row, : len(words)].tolist() == words
            assert found.score[row].item() == pytest.approx(score, rel=1e-5)


def test_the_search_goes_on_while_a_longer_sentence_can_win():
    logits = torch.full((6, 4), -20.0)
    logits[1] = torch.tensor([-20.0, -20.0, 0.25, 0.0])  # to end at once is a little likelier than 3,
    logits[3] = torch.tensor([-20.0, -20.0, -9.0, 9.0])  # which goes on for certain
    state = (torch.zeros(1),)
    options = {"begin": 1, "end": 2, "pad": 0, "beam_size": 2, "max_length": 8, "length_penalty": 1.0}
    found = beam_search(lambda last, state: (logits[last], state), state, **options)
    assert found.token.tolist() == [[3] * 8]


def test_sentences_are_searched_independently():
    step, state = chain(5, 6, seed=1)
    together = beam_search(step, state, **SEARCH, beam_size=3, max_length=9)
    for row in range(5):
        alone = beam_search(step, tuple(part[row : row + 1] for part in state), **SEARCH, beam_size=3, max_length=9)
        assert together.token[row, : alone.token.shape[1]].tolist() == alone.token[0].tolist()
        assert together.score[row] == alone.score[0]
