"""Tags and spans against transformers, and by their laws."""

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import enrobe
from enrobe import CallError, Model, Span, TextError
from enrobe.dialects import DIALECTS
from enrobe.tasks.heads import run_heads, softmax
from enrobe.tasks.tag import word_tags
from enrobe.text.rows import Row, Words, encode_texts, encode_to_tag
from tests.support import FAMILIES, reference, reference_outputs, scaled_error, toy_tokenizer
from tests.tasks.heads import TAGS, WORDS, bert_folder, bert_tokenizer, with_head
from tests.tasks.toys import word_folder

TEXTS = [
    "the cats sat on the mat.",
    "new york, w9 w8 w7-w6 (w5) sitting",
    "",
    "w4 日本 w8 é unknown",
]
TEXTS += ["w9 " * 30 + "new york " * 20]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family: str, tmp_path: Path) -> None:
    theirs = word_folder(tmp_path, family, head="tag", seed=4)
    model = enrobe.load(tmp_path)
    texts = ["w5 w6 w7", "w9 " * 510, "w8 w9 w10 w11"]
    rows = [r for r in encode_texts(model.tokenizer, texts, limit=512) if isinstance(r, Row)]
    expected = reference_outputs(theirs, [r.ids for r in rows]).logits
    encoded = [w for w in encode_to_tag(model.tokenizer, texts, limit=512) if isinstance(w, Words)]
    logits = run_heads(model.engine, [words.rows[0] for words in encoded], ["tag"])
    for ours, other in zip(logits, expected, strict=True):
        assert scaled_error(ours["tag"], other[1:-1]) <= 1e-5


def grouped(
    pipeline: transformers.TokenClassificationPipeline, text: str
) -> list[dict[str, object]]:
    # An empty text has no entity, and the pipeline takes none.
    return list(pipeline(text)) if text else []


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("seed", [2, 5, 11, 15])
def test_spans_are_the_pipelines(seed: int, tmp_path: Path) -> None:
    theirs = transformers.TokenClassificationPipeline(
        model=bert_folder(tmp_path, "tag", seed=seed),
        tokenizer=bert_tokenizer(tmp_path),
        aggregation_strategy="first",
    )
    model = enrobe.load(tmp_path)
    total = 0
    for text, spans in zip(TEXTS, model.tag(TEXTS), strict=True):
        expected = grouped(theirs, text)
        total += len(spans)
        assert [(s.start, s.end, s.label) for s in spans] == [
            (e["start"], e["end"], e["entity_group"]) for e in expected
        ]
        for span, entity in zip(spans, expected, strict=True):
            assert span.text == text[span.start : span.end]
            assert span.probability == pytest.approx(entity["score"], abs=1e-5)
    assert total > 10


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_words_are_tagged_as_transformers_tags_them(tmp_path: Path) -> None:
    theirs = transformers.TokenClassificationPipeline(
        model=bert_folder(tmp_path, "tag", seed=12),
        tokenizer=bert_tokenizer(tmp_path),
        aggregation_strategy="first",
    )
    model = enrobe.load(tmp_path)
    words = ["new", "york", "w9", "w8", "w7", "w6", "the", "cats", "sat", "w4", "w3"]
    (spans,) = model.tag(words=[words])
    (plain,) = model.tag(" ".join(words))
    assert [s.text for s in spans] == [s.text for s in plain] and spans
    assert [s.probability for s in spans] == pytest.approx([s.probability for s in plain])
    for span in spans:
        assert " ".join(words[span.start : span.end]) == span.text
    expected = theirs(" ".join(words))
    assert [(s.text, s.label) for s in spans] == [(e["word"], e["entity_group"]) for e in expected]


def test_byte_level_words_get_their_space(tmp_path: Path) -> None:
    """Pieces, places and labels of pre-split words are those of transformers' own splitting."""
    tokenizer = toy_tokenizer()
    model = reference(tmp_path, "roberta", "tag", seed=5, vocab_size=tokenizer.vocab_size)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    first, last, pad, unknown, mask = DIALECTS["roberta"].special_tokens
    backend = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"),
        bos_token=first,
        eos_token=last,
        pad_token=pad,
        unk_token=unknown,
        mask_token=mask,
    )
    words = ["the", "cat", "naïve", "", ",", "sat", "日本"]
    ids, firsts = [0], []
    for word in words:
        pieces = backend(" " + word, add_special_tokens=False)["input_ids"] if word else []
        firsts += [len(ids)] if pieces else []
        ids += pieces
    ids.append(2)
    expected = reference_outputs(model, [np.array(ids)]).logits[0][firsts]
    ours = enrobe.load(tmp_path)
    (found,) = word_tags(ours.engine, ours.tokenizer, [words], "tag")
    assert not isinstance(found, TextError)
    rows, tags = found
    assert rows.rows[0].ids.tolist() == ids
    labels = [f"LABEL_{n}" for n in expected.argmax(axis=1)]
    assert tags == [*labels[:3], "O", *labels[3:]]


def test_a_long_text_is_read_in_windows(tmp_path: Path) -> None:
    theirs = bert_folder(tmp_path, "tag", seed=12)
    model = enrobe.load(tmp_path)
    text = " ".join(f"w{n * 7 % 60}" for n in range(1200))
    (found,) = word_tags(model.engine, model.tokenizer, [text], "tag")
    assert not isinstance(found, TextError)
    words, tags = found
    assert len(words.rows) == 4 and len(tags) == 1200
    expected = reference_outputs(theirs, [row.ids for row in words.rows]).logits
    for row, logits in zip(words.rows, expected, strict=True):
        for place, unit in zip(row.places, row.units, strict=True):
            assert tags[unit] == TAGS[logits[place].argmax()]
            # No other window has it nearer its middle.
            middles = [abs(place - (len(row.ids) - 1) / 2)]
            for other in words.rows:
                there = np.flatnonzero(other.units == unit)
                middles += [abs(other.places[n] - (len(other.ids) - 1) / 2) for n in there]
            assert middles[0] == min(middles)
    # Spans go over the edges of windows.
    (spans,) = model.tag(text)
    assert all(text[s.start : s.end] == s.text for s in spans)
    with_head(model, limit=40)
    (short,) = word_tags(model.engine, model.tokenizer, [text], "tag")
    assert not isinstance(short, TextError) and len(short[0].rows) > 50


def test_alone_equals_batched(tmp_path: Path) -> None:
    bert_folder(tmp_path, "tag", seed=12)
    model = enrobe.load(tmp_path)
    for text, together in zip(TEXTS, model.tag(TEXTS), strict=True):
        (alone,) = model.tag(text)
        assert [(s.start, s.end, s.label) for s in alone] == [
            (s.start, s.end, s.label) for s in together
        ]
        assert [s.probability for s in alone] == pytest.approx([s.probability for s in together])


def test_temperature(tmp_path: Path) -> None:
    bert_folder(tmp_path, "tag", seed=12)
    model = enrobe.load(tmp_path)
    (sharp,), (soft,) = model.tag(TEXTS[0]), with_head(model, temperature=4.0).tag(TEXTS[0])
    assert [s.label for s in soft] == [s.label for s in sharp]
    assert all(a.probability < b.probability for a, b in zip(soft, sharp, strict=True))
    assert softmax(np.zeros((0, 3), np.float32), 1.0).shape == (0, 3)


def test_parts_of_speech_are_one_span_a_word(tmp_path: Path) -> None:
    bert_folder(tmp_path, "tag", seed=12, tags=["N", "V", "A", "P", "."])
    model = enrobe.load(tmp_path)
    (spans,) = model.tag("the cats sat on the mat.")
    assert [s.text for s in spans] == ["the", "cats", "sat", "on", "the", "mat", "."]
    # A word without a piece has no tag.
    (spans,) = model.tag(words=[["the", "", "mat"]])
    assert [(s.start, s.text) for s in spans] == [(0, "the"), (2, "mat")]


def test_errors(tmp_path: Path) -> None:
    bert_folder(tmp_path, "tag")
    model = enrobe.load(tmp_path)
    with pytest.raises(TextError, match="surrogate"):
        model.tag("a \udfff")
    good, bad, empty = model.tag(["w5 w6", "a \udfff", ""], errors="collect")
    assert all(span.error is None for span in good) and empty == []
    assert len(bad) == 1 and "surrogate" in str(bad[0].error) and bad[0].text == ""
    (bad,) = model.tag(words=[["a", "\ud800"]], errors="collect")
    assert bad[0].error
    assert model.tag([]) == model.tag(words=[]) == []
    assert model.tag(words=[[]]) == [[]]
    with pytest.raises(CallError, match="words has 'a'"):
        model.tag(words=["a"])  # type: ignore[list-item]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    folder = tmp_path_factory.mktemp("tag")
    bert_folder(folder / "bert", "tag", seed=12)
    tokenizer = toy_tokenizer()
    reference(folder / "roberta", "roberta", "tag", seed=5, vocab_size=tokenizer.vocab_size)
    (folder / "roberta/tokenizer.json").write_text(tokenizer.to_json())
    return enrobe.load(folder / "bert"), enrobe.load(folder / "roberta")


PARTS = st.one_of(
    st.sampled_from([*WORDS, " ", "\n", "e\u0301", "กำ", "naïve", "\ufb01", "İ"]), st.text()
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(parts=st.lists(PARTS, max_size=12))
def test_a_span_is_the_text_between_its_ends(models: tuple[Model, Model], parts: list[str]) -> None:
    text = " ".join(parts)
    for model in models:
        (spans,) = model.tag(text)
        ends = [0, *(span.end for span in spans)]
        for span, before in zip(spans, ends, strict=False):
            assert before <= span.start < span.end <= len(text)
            assert span.text == text[span.start : span.end] == span.text.strip()
            assert 0 < span.probability <= 1
            json.dumps(span.to_dict(), allow_nan=False)
        (of_words,) = model.tag(words=[parts])
        for span in of_words:
            assert span.text == " ".join(parts[span.start : span.end])
            assert isinstance(span, Span)
