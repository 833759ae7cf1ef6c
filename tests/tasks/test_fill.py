"""Filling masks against transformers and against every filling there is, counted out."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

import enrobe
from enrobe.engines.base import Outputs
from enrobe.errors import CallError, ModelError, TextError
from enrobe.tasks.masked import MaskedRow, log_softmax, run_masked, top
from enrobe.tasks.search import Blank, search
from enrobe.text.ragged import Ids, Ragged
from enrobe.text.tokens import Tokens
from tests.support import reference

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += [a + b for a in "bcdfg" for b in "aeiou"] + [f"##{a}{b}" for a in "bcd" for b in "aeiou"]
WORDS += ["."]
LONG = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bert")
    reference(out, "bert", "mlm", seed=1, vocab_size=len(WORDS), max_positions=LONG)
    (out / "vocab.txt").write_text("\n".join(WORDS))
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> enrobe.Model:
    return enrobe.load(folder)


def log_probabilities(model: enrobe.Model, text: str) -> np.ndarray:
    return np.log(model.distribution(text)[0].astype(np.float64))


# --- marginals ----------------------------------------------------------------------------------


def test_equals_the_fill_mask_pipeline(folder: Path, model: enrobe.Model) -> None:
    pipeline = transformers.pipeline("fill-mask", model=str(folder), top_k=7)
    texts = ["ba [MASK] ce.", "[MASK]", "do di [MASK] du bababa [MASK] go"]
    for text, ours in zip(texts, model.fill(texts, top_k=7), strict=True):
        theirs: Any = pipeline(text)
        theirs = theirs if isinstance(theirs[0], list) else [theirs]
        assert len(ours.masks) == len(theirs)
        for mask, expected in zip(ours.masks, theirs, strict=True):
            assert text[mask.start : mask.end] == "[MASK]"
            assert [c.token_ids[0] for c in mask.candidates] == [e["token"] for e in expected]
            for candidate, e in zip(mask.candidates, expected, strict=True):
                assert candidate.probability == pytest.approx(e["score"], rel=1e-4)
                assert candidate.log_probability == pytest.approx(math.log(e["score"]), abs=1e-4)


def test_a_distribution_is_one(model: enrobe.Model) -> None:
    found = model.distribution(["ba [MASK]", "[MASK] be [MASK] du"])
    assert [values.shape for values in found] == [(1, len(WORDS)), (2, len(WORDS))]
    for values in found:
        assert values.dtype == np.float32
        assert values.sum(axis=1) == pytest.approx(1, abs=1e-6)


def test_a_single_string_is_one_text(model: enrobe.Model) -> None:
    assert model.fill("ba [MASK]") == model.fill(["ba [MASK]"])
    assert model.fill([]) == []
    assert model.distribution([]) == []


def test_answers_do_not_depend_on_the_batch(model: enrobe.Model) -> None:
    texts = ["ba [MASK]", "du " * 20 + "[MASK]", "[MASK] go", "be " * 9 + "[MASK] [MASK]"]
    for alone, batched in zip([model.fill(t)[0] for t in texts], model.fill(texts), strict=True):
        assert alone.text == batched.text
        for a, b in zip(alone.masks, batched.masks, strict=True):
            assert [c.word for c in a.candidates] == [c.word for c in b.candidates]
            for x, y in zip(a.candidates, b.candidates, strict=True):
                assert x.log_probability == pytest.approx(y.log_probability, abs=1e-5)


def test_offsets_are_characters_of_the_input(model: enrobe.Model) -> None:
    text = "  bá 日本 😀 [MASK]. [MASK]"
    for mask in model.fill(text)[0].masks:
        assert text[mask.start : mask.end] == "[MASK]"


def test_top_breaks_ties_by_id() -> None:
    values = np.array([1.0, 3.0, 2.0, 3.0, 2.0, 2.0], np.float32)
    for count in range(1, 7):
        assert top(values, count).tolist() == [1, 3, 2, 4, 5, 0][:count]


def test_log_softmax_of_far_apart_values() -> None:
    found = log_softmax(np.array([[1000.0, 0.0, -1000.0]], np.float32))
    assert found.tolist() == [[0.0, -1000.0, -2000.0]]


# --- long texts ---------------------------------------------------------------------------------


def test_every_mask_of_a_long_text_is_in_a_window(model: enrobe.Model) -> None:
    words = ["ba", "de", "gu"] * 60
    for place in (0, 1, 50, 100, 179):
        words[place] = "[MASK]"
    (fill,) = model.fill(" ".join(words))
    assert len(fill.masks) == 5
    # The window around the mask at 100 alone: what stands within reach of it on either side.
    size = LONG - 2
    start = 100 - (size - 1) // 2
    alone = model.fill(" ".join(words[start : start + size]))[0].masks[0]
    assert [c.word for c in fill.masks[3].candidates] == [c.word for c in alone.candidates]
    assert fill.masks[3].candidates[0].probability == pytest.approx(
        alone.candidates[0].probability, rel=1e-5
    )


def test_the_longest_row_is_no_window(model: enrobe.Model) -> None:
    words = ["ba"] * (LONG - 2)
    words[-1] = "[MASK]"
    assert len(model.fill(" ".join(words))[0].masks) == 1


def test_joint_over_masks_too_far_apart(model: enrobe.Model) -> None:
    texts = ["[MASK] " + "ba " * LONG + "[MASK]", "ba [MASK]"]
    with pytest.raises(TextError, match="tokens apart"):
        model.fill(texts, joint=True)
    found = model.fill(texts, joint=True, errors="collect")
    assert found[0].error is not None
    assert len(found[1].joint) == 5


# --- several masks ------------------------------------------------------------------------------


def chain(model: enrobe.Model, text: str) -> dict[tuple[int, ...], float]:
    """Every filling of a text's masks, by the definition: the surest mask first, each time."""
    parts = text.split("[MASK]")
    found: dict[tuple[int, ...], float] = {}

    def go(filled: dict[int, int], total: float) -> None:
        count = len(parts) - 1
        if len(filled) == count:
            found[tuple(filled[i] for i in range(count))] = total
            return
        words = ["[MASK]" if i not in filled else WORDS[filled[i]] for i in range(count)]
        shown = "".join(itertools.chain(*zip(parts, [*words, ""], strict=True)))
        values = log_probabilities(model, shown)
        still = [i for i in range(count) if i not in filled]
        surest = int(values.max(axis=1).argmax())
        for index in FILLERS:
            go({**filled, still[surest]: index}, total + float(values[surest, index]))

    go({}, 0.0)
    return found


# Whole words, which stay one token when they are written out.
FILLERS = [i for i, word in enumerate(WORDS) if word.isalpha()]


def blank(model: enrobe.Model, text: str, **options: Any) -> Blank:
    (tokens,) = model.tokenizer.encode([text])
    assert isinstance(tokens, Tokens)
    at = np.flatnonzero(tokens.ids == model.tokenizer.mask_id)
    return Blank(MaskedRow(tokens.ids, at), **options)


def test_joint_is_the_true_chain_rule_product(model: enrobe.Model) -> None:
    text = "ba [MASK] de [MASK] ."
    expected = chain(model, text)
    (fill,) = model.fill(text, joint=True, top_k=len(WORDS))
    (found,) = search(model.engine, [blank(model, text)], beam=2 * len(WORDS))
    # What `fill` says is what the search found, and of that all that can be written out is right.
    for joint, filling in zip(fill.joint, found, strict=False):
        assert joint.log_probability == pytest.approx(filling.log_probability, abs=1e-5)
        assert joint.words == tuple(model.tokenizer.word([i]) for i in filling.ids)
    written = [filling for filling in found if filling.ids in expected]
    assert written
    for filling in written:
        assert filling.log_probability == pytest.approx(expected[filling.ids], abs=1e-4)


def test_a_beam_as_wide_as_the_vocabulary_finds_the_best(model: enrobe.Model) -> None:
    text = "ba [MASK] [MASK] ."
    allowed = np.isin(np.arange(len(WORDS)), FILLERS)
    whole = blank(model, text, allowed=(allowed, allowed))
    (wide,) = search(model.engine, [whole], beam=len(WORDS) ** 2)
    expected = chain(model, text)
    assert len(wide) == len(expected)
    best = max(expected, key=lambda ids: expected[ids])
    assert wide[0].ids == best
    assert wide[0].log_probability == pytest.approx(expected[best], abs=1e-4)


def test_joint_of_one_mask_is_its_marginal(model: enrobe.Model) -> None:
    (fill,) = model.fill("ba [MASK]", joint=True, top_k=4)
    for joint, candidate in zip(fill.joint, fill.masks[0].candidates, strict=True):
        assert joint.words == (candidate.word,)
        assert joint.log_probability == pytest.approx(candidate.log_probability, abs=1e-5)


# --- targets ------------------------------------------------------------------------------------


def test_targets_are_scored_whole_in_the_order_given(model: enrobe.Model) -> None:
    targets = ["de", "badu", "ga", "cobebi"]
    (fill,) = model.fill("go [MASK] .", targets=targets)
    found = fill.masks[0].candidates
    assert [c.word for c in found] == targets
    assert [len(c.token_ids) for c in found] == [1, 2, 1, 3]
    assert sum(c.probability for c in found) == pytest.approx(1)
    marginal = log_probabilities(model, "go [MASK] .")[0]
    assert found[0].log_probability == pytest.approx(marginal[WORDS.index("de")], abs=1e-4)
    total = sum(math.exp(c.log_probability) for c in found)
    for candidate in found:
        share = math.exp(candidate.log_probability) / total
        assert candidate.probability == pytest.approx(share, rel=1e-5)


def test_a_target_of_two_pieces_is_the_chain_over_two_masks(model: enrobe.Model) -> None:
    (fill,) = model.fill("go [MASK] .", targets=["badu"])
    first, second = WORDS.index("ba"), WORDS.index("##du")
    both = log_probabilities(model, "go [MASK] [MASK] .")
    if both[0].max() >= both[1].max():
        rest = log_probabilities(model, "go ba [MASK] .")[0, second]
        expected = both[0, first] + rest
    else:
        tokenizer, engine = model.tokenizer, model.engine
        (tokens,) = tokenizer.encode(["go [MASK] [MASK] ."])
        ids = tokens.ids.copy()  # type: ignore[union-attr]
        ids[3] = second
        (values,) = run_masked(engine, [MaskedRow(ids, np.array([2]))], lambda _, v: v.copy())
        expected = both[1, second] + values[0, first]
    assert fill.masks[0].candidates[0].log_probability == pytest.approx(expected, abs=1e-4)


def test_targets_at_several_masks(model: enrobe.Model) -> None:
    (fill,) = model.fill("[MASK] be [MASK]", targets=["ba", "gubu"])
    assert [[c.word for c in mask.candidates] for mask in fill.masks] == [["ba", "gubu"]] * 2


# --- words of several pieces --------------------------------------------------------------------


def test_max_pieces_finds_every_word_that_it_should(model: enrobe.Model) -> None:
    text = "go [MASK] ."
    count = len(WORDS)
    (fill,) = model.fill(text, max_pieces=2, top_k=count)
    words = [c.word for c in fill.masks[0].candidates]
    assert len(set(words)) == len(words)
    assert [c.log_probability for c in fill.masks[0].candidates] == sorted(
        (c.log_probability for c in fill.masks[0].candidates), reverse=True
    )
    several = [c for c in fill.masks[0].candidates if len(c.token_ids) == 2]
    assert several
    for candidate in several[:10]:
        (again,) = model.fill(text, targets=[candidate.word])
        same = again.masks[0].candidates[0]
        assert same.token_ids == candidate.token_ids
        assert same.log_probability == pytest.approx(candidate.log_probability, abs=1e-4)
    # The whole words among the plain candidates, with the probabilities they have there.
    (plain,) = model.fill(text, top_k=len(WORDS))
    whole = [c for c in plain.masks[0].candidates if c.tokens[0][0] not in "[#"]
    single = [c for c in fill.masks[0].candidates if len(c.token_ids) == 1]
    assert [c.word for c in single] == [c.word for c in whole[: len(single)]]
    for a, b in zip(single, whole, strict=False):
        assert a.log_probability == pytest.approx(b.log_probability, abs=1e-5)


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"top_k": -1},
        {"top_k": 10**9},
        {"top_k": 2.0},
        {"top_k": True},
        {"max_pieces": 0},
        {"max_pieces": 11},
        {"targets": []},
        {"targets": ["ba", "ba"]},
        {"targets": [5]},
        {"targets": [""]},
        {"targets": ["zzz"]},
        {"targets": ["ba" * 100]},
        {"targets": ["ba"], "joint": True},
        {"targets": ["ba"], "max_pieces": 2},
        {"joint": True, "max_pieces": 2},
        {"errors": "ignore"},
    ],
)
def test_mistakes_in_a_call(options: dict[str, Any], model: enrobe.Model) -> None:
    with pytest.raises(CallError) as caught:
        model.fill("ba [MASK]", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("texts", [5, None, b"x", {"a": 1}])
def test_texts_that_are_none(texts: Any, model: enrobe.Model) -> None:
    with pytest.raises(CallError):
        model.fill(texts)


def test_a_text_that_cannot_be_filled(model: enrobe.Model) -> None:
    texts = ["no mask", "ba [MASK]", "\ud800 [MASK]", "<mask>", ""]
    with pytest.raises(TextError, match="text 0: no mask"):
        model.fill(texts)
    found = model.fill(texts, errors="collect")
    assert [fill.error is None for fill in found] == [False, True, False, False, False]
    assert "this model's mask is [MASK]" in str(found[3].error)
    assert [fill.text for fill in found] == texts
    assert np.isnan(model.distribution(texts, errors="collect")[0]).all()


def test_special_false_leaves_no_mask(model: enrobe.Model) -> None:
    with pytest.raises(TextError, match="plain text"):
        model.fill("ba [MASK]", special=False)


def test_a_model_without_the_head(tmp_path: Path) -> None:
    reference(tmp_path, "bert", "tag", vocab_size=len(WORDS), max_positions=LONG)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    with pytest.raises(ModelError, match="no masked-LM head; its heads: tag"):
        enrobe.load(tmp_path).fill("ba [MASK]")


def test_results_turn_into_dictionaries(model: enrobe.Model) -> None:
    (fill,) = model.fill("ba [MASK]", top_k=1, joint=True)
    record = fill.to_dict()
    assert set(record) == {"text", "masks", "joint", "error"}
    assert set(record["masks"][0]) == {"start", "end", "candidates"}
    assert set(record["masks"][0]["candidates"][0]) == {
        "word",
        "token_ids",
        "tokens",
        "probability",
        "log_probability",
    }


# --- batching -----------------------------------------------------------------------------------


class Counting:
    """An engine that notes what it is asked for."""

    def __init__(self, model: enrobe.Model, most: int) -> None:
        self.engine, self.config, self.heads = model.engine, model.engine.config, model.engine.heads
        self.budget = model.engine.budget
        self.asked: list[int] = []

    def run(self, batch: Ragged, request: Any, at: Ids) -> Outputs:
        self.asked.append(len(at))
        return self.engine.run(batch, request, at)


def test_a_large_vocabulary_never_fills_memory(
    model: enrobe.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [MaskedRow(np.arange(5, 30), np.arange(n % 25 + 1)) for n in range(20)]

    def read() -> Iterator[np.ndarray]:
        yield from run_masked(engine, rows, lambda _, v: v.copy())  # type: ignore[arg-type]

    engine = Counting(model, 10)
    whole = list(read())
    monkeypatch.setattr("enrobe.tasks.masked._LARGEST_OUTPUT", 10 * len(WORDS))
    engine = Counting(model, 10)
    parts = list(read())
    assert max(engine.asked) <= 10
    for a, b in zip(whole, parts, strict=True):
        assert np.abs(a - b).max() < 1e-5
