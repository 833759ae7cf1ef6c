"""Pseudo-log-likelihood against a loop written out by hand over transformers."""

import math

import numpy as np
import pytest
import torch

import enrobe
from enrobe.errors import CallError, TextError
from tests.support import SHARED, reference

VOCAB = SHARED / "tokenizers/roberta-base"
pytestmark = pytest.mark.skipif(
    not VOCAB.is_dir(), reason="roberta-base's vocabulary files are not on this machine"
)
TEXTS = ["The supercalifragilistic traveler slept.", "Hi", "Don't 日本 ☃!", "a <mask> </s> b"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[enrobe.Model, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("roberta")
    theirs = reference(folder, "roberta", "mlm", seed=2, vocab_size=50_265, max_positions=42)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((VOCAB / name).read_bytes())
    return enrobe.load(folder), theirs


def by_hand(model: torch.nn.Module, ids: list[int], words: list[int], method: str) -> float:
    """Mask each token in turn (and the rest of its word), and add up what it was worth."""
    total = 0.0
    for place in range(len(ids)):
        masked = list(ids)
        masked[place] = 50_264
        if method == "within_word":
            for later in range(place + 1, len(ids)):
                if words[later] == words[place]:
                    masked[later] = 50_264
        with torch.inference_mode():
            logits = model(torch.tensor([[0, *masked, 2]])).logits[0, place + 1].double()
        total += float(torch.log_softmax(logits, -1)[ids[place]])
    return total


@pytest.mark.parametrize("method", ["plain", "within_word"])
def test_equals_the_definition(method: str, pair: tuple[enrobe.Model, torch.nn.Module]) -> None:
    ours, theirs = pair
    found = ours.score(TEXTS, method=method)  # type: ignore[arg-type]
    for text, score in zip(TEXTS, found, strict=True):
        (tokens,) = ours.tokenizer.contents([text], special=False)
        ids, words = tokens.ids.tolist(), tokens.words.tolist()  # type: ignore[union-attr]
        expected = by_hand(theirs, ids, words, method)
        assert score.tokens == len(ids)
        assert score.log_likelihood == pytest.approx(expected, rel=1e-5)


def test_within_word_masks_the_rest_of_the_word(pair: tuple[enrobe.Model, torch.nn.Module]) -> None:
    ours, _ = pair
    long, short = ours.score([TEXTS[0], "Hi"], method="within_word")
    assert long.log_likelihood != ours.score(TEXTS[0])[0].log_likelihood
    # One piece: nothing else to mask.
    assert short.log_likelihood == pytest.approx(ours.score("Hi")[0].log_likelihood, abs=1e-5)


def test_a_literal_special_token_is_plain_text(pair: tuple[enrobe.Model, torch.nn.Module]) -> None:
    score = pair[0].score("a <mask>")[0]
    assert score.tokens == 4  # a, Ġ<, mask, >


def test_a_long_text_is_scored_in_windows(pair: tuple[enrobe.Model, torch.nn.Module]) -> None:
    ours, theirs = pair
    text = " ".join(f"word{i}" for i in range(40))
    (tokens,) = ours.tokenizer.contents([text], special=False)
    ids = tokens.ids.tolist()  # type: ignore[union-attr]
    size = ours.config.max_tokens - 2
    assert len(ids) > 1.5 * size
    total = 0.0
    for place, answer in enumerate(ids):
        start = max(0, min(place - (size - 1) // 2, len(ids) - size))
        window = ids[start : start + size]
        window[place - start] = 50_264
        with torch.inference_mode():
            logits = theirs(torch.tensor([[0, *window, 2]])).logits[0, place - start + 1].double()
        total += float(torch.log_softmax(logits, -1)[answer])
    assert ours.score(text)[0].log_likelihood == pytest.approx(total, rel=1e-5)


def test_mistakes(pair: tuple[enrobe.Model, torch.nn.Module]) -> None:
    model = pair[0]
    with pytest.raises(CallError, match="did you mean 'within_word'"):
        model.score("Hi", method="withinword")  # type: ignore[arg-type]
    with pytest.raises(TextError, match="no token"):
        model.score("")
    found = model.score(["Hi", "", "\udfff"], errors="collect")
    assert [score.error is None for score in found] == [True, False, False]
    assert math.isnan(found[1].log_likelihood)
    assert np.isfinite(found[0].log_likelihood)
