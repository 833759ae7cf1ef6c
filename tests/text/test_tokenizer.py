import json
import lzma
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enrobe.dialects import DIALECTS
from enrobe.errors import CallError, ModelError, TextError
from enrobe.text.tokenizer import Tokenizer
from enrobe.text.tokens import Tokens
from tests.support import SHARED

ROBERTA = SHARED / "tokenizers/roberta-base"
XLM_ROBERTA = SHARED / "tokenizers/xlm-roberta/tokenizer.json.xz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "ca", "##t"]
WORDS += ["é", ".", "[", "]", "mask", "a", "##b", "##c", "<", ">", "/"]

needs_roberta = pytest.mark.skipif(
    not ROBERTA.is_dir(), reason="roberta-base's vocabulary files are not on this machine"
)


@pytest.fixture(scope="session")
def roberta() -> Tokenizer:
    return Tokenizer.from_folder(ROBERTA, "roberta")


@pytest.fixture(scope="session")
def xlm_roberta(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if not XLM_ROBERTA.is_file():
        pytest.skip("XLM-R's vocabulary file is not on this machine")
    folder = tmp_path_factory.mktemp("xlm-roberta")
    (folder / "tokenizer.json").write_bytes(lzma.decompress(XLM_ROBERTA.read_bytes()))
    return Tokenizer.from_folder(folder, "xlm-roberta")


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


@pytest.fixture(scope="session")
def bert(bert_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(bert_folder, "bert")


def one(tokenizer: Tokenizer, text: str, **options: bool) -> Tokens:
    (tokens,) = tokenizer.encode([text], **options)
    assert isinstance(tokens, Tokens), tokens
    return tokens


# --- equal to the reference ---------------------------------------------------------------------


@needs_roberta
def test_hello_world(roberta: Tokenizer) -> None:
    assert one(roberta, "Hello world").ids.tolist() == [0, 31414, 232, 2]


@pytest.fixture(scope="session")
def reference() -> transformers.PreTrainedTokenizerBase:
    return transformers.RobertaTokenizerFast.from_pretrained(ROBERTA)


@needs_roberta
def test_ids_equal_the_references_on_real_lines(
    roberta: Tokenizer, reference: transformers.PreTrainedTokenizerBase
) -> None:
    lines: list[str] = []
    for name in ("text-enwiki", "text-simplewiki", "text-books-de", "text-zhwiki"):
        path = SHARED / "data" / name / "train-000.txt.xz"
        with lzma.open(path, "rt", encoding="utf-8") as file:
            lines += [line.rstrip("\n") for line in islice(file, 2500)]
    assert len(lines) == 10_000
    ours = roberta.encode(lines)
    theirs = reference(lines)["input_ids"]
    for line, mine, expected in zip(lines, ours, theirs, strict=True):
        assert isinstance(mine, Tokens)
        assert mine.ids.tolist() == expected, line


@needs_roberta
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(max_size=60), second=st.text(min_size=1, max_size=30))
def test_ids_equal_the_references_on_any_string(
    roberta: Tokenizer,
    reference: transformers.PreTrainedTokenizerBase,
    text: str,
    second: str,
) -> None:
    assert one(roberta, text).ids.tolist() == reference(text)["input_ids"]
    # An empty second text is no pair to transformers, and a pair here.
    (pair,) = roberta.encode([text], [second])
    assert isinstance(pair, Tokens)
    assert pair.ids.tolist() == reference(text, second)["input_ids"]


@needs_roberta
@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_byte_level_text_comes_back(roberta: Tokenizer, text: str) -> None:
    (content,) = roberta.contents([text], special=False)
    assert isinstance(content, Tokens)
    assert roberta.decode(content.ids) == text
    # Offsets are characters of the text, in order, inside it.
    assert (content.spans[:, 0] <= content.spans[:, 1]).all()
    assert content.spans.size == 0 or content.spans.max() <= len(text)


@needs_roberta
def test_words_equal_the_references_prefix_space(roberta: Tokenizer) -> None:
    reference = transformers.RobertaTokenizerFast.from_pretrained(ROBERTA, add_prefix_space=True)
    words = ["EU", "rejects", "German", "call", "to", "don't", "naïve", "日本", ".", "'s"]
    theirs = reference(words, is_split_into_words=True, add_special_tokens=False)
    ours = roberta.contents_of_words(words)
    assert ours.ids.tolist() == theirs["input_ids"]
    assert ours.words.tolist() == theirs.word_ids()
    for word, (start, end) in zip(ours.words, ours.spans, strict=True):
        assert 0 <= start < end <= len(words[word])


def test_vocab_txt_equals_the_reference(bert: Tokenizer, bert_folder: Path) -> None:
    reference = transformers.BertTokenizerFast(vocab=str(bert_folder / "vocab.txt"))
    texts = ["The cats sat.", "É cát [MASK] the", "中the国", "", "abc xyz", "[mask] [MASK]"]
    assert [one(bert, t).ids.tolist() for t in texts] == reference(texts)["input_ids"]
    (pair,) = bert.encode(["the cat"], ["sat."])
    assert isinstance(pair, Tokens)
    expected = reference("the cat", "sat.")
    assert pair.ids.tolist() == expected["input_ids"]
    assert pair.types.tolist() == expected["token_type_ids"]


def test_two_gpt2_files_equal_tokenizer_json(roberta: Tokenizer, tmp_path: Path) -> None:
    if not ROBERTA.is_dir():
        pytest.skip("roberta-base's vocabulary files are not on this machine")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((ROBERTA / name).read_bytes())
    other = Tokenizer.from_folder(tmp_path, "roberta")
    for text in ("Hello world", "a <mask> b", "  two  spaces ", "😀 é", ""):
        assert one(other, text).ids.tolist() == one(roberta, text).ids.tolist()


# --- special tokens -----------------------------------------------------------------------------


@needs_roberta
def test_the_mask_takes_the_space_to_its_left(roberta: Tokenizer) -> None:
    assert one(roberta, "of <mask>.").ids.tolist() == one(roberta, "of<mask>.").ids.tolist()


def test_a_mask_that_lost_its_left_space_gets_it_back(xlm_roberta: Tokenizer) -> None:
    assert roberta_pieces(xlm_roberta, "of <mask>.") == ["<s>", "▁of", "<mask>", "▁", ".", "</s>"]


def roberta_pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return list(tokenizer.pieces(one(tokenizer, text).ids))


@pytest.mark.parametrize("text", ["a <mask> b", "</s>", "<s> x", "<unk>", "a<pad>", "<mask"])
@pytest.mark.parametrize("family", ["roberta", "xlm_roberta"])
def test_special_false_reads_them_as_plain_text(
    text: str, family: str, request: pytest.FixtureRequest
) -> None:
    if family == "roberta" and not ROBERTA.is_dir():
        pytest.skip("roberta-base's vocabulary files are not on this machine")
    tokenizer: Tokenizer = request.getfixturevalue(family)
    (tokens,) = tokenizer.contents([text], special=False)
    assert isinstance(tokens, Tokens)
    named = set(tokenizer.special_ids.tolist()) - {tokenizer.unk_id}
    assert not named & set(tokens.ids.tolist())
    assert tokenizer.decode(tokens.ids).strip() == text


def test_special_false_for_wordpiece(bert: Tokenizer) -> None:
    tokens = one(bert, "the [MASK]", special=False)
    assert bert.pieces(tokens.ids) == ("[CLS]", "the", "[", "mask", "]", "[SEP]")


def test_the_models_limit_rules_not_the_files(bert_folder: Path, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(Tokenizer.from_folder(bert_folder, "bert").to_json())
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokens = one(Tokenizer.from_folder(tmp_path, "bert"), "the cat sat the cat")
    assert len(tokens) == 7


def test_a_tokenizer_json_without_post_processor_gets_the_familys_frame(
    bert_folder: Path, tmp_path: Path
) -> None:
    state = json.loads(Tokenizer.from_folder(bert_folder, "bert").to_json())
    state["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    bare = Tokenizer.from_folder(tmp_path, "bert")
    full = Tokenizer.from_folder(bert_folder, "bert")
    for pair in (None, ["sat"]):
        (ours,), (expected,) = bare.encode(["the cat"], pair), full.encode(["the cat"], pair)
        assert isinstance(ours, Tokens)
        assert isinstance(expected, Tokens)
        assert ours.ids.tolist() == expected.ids.tolist()
        assert ours.types.tolist() == expected.types.tolist()


# --- cuts ---------------------------------------------------------------------------------------


def test_a_cut_is_counted(bert: Tokenizer) -> None:
    (tokens,) = bert.encode(["the cat sat the cat sat"], limit=5)
    assert isinstance(tokens, Tokens)
    assert (len(tokens), tokens.cut) == (5, 3)
    assert bert.pieces(tokens.ids) == ("[CLS]", "the", "cat", "sat", "[SEP]")


@given(st.integers(0, 12), st.integers(0, 12), st.integers(3, 30))
def test_of_a_pair_the_longer_one_gives_way(bert: Tokenizer, a: int, b: int, limit: int) -> None:
    (tokens,) = bert.encode(["the " * a], ["cat " * b], limit=limit)
    assert isinstance(tokens, Tokens)
    first, second = (tokens.sides == 0).sum(), (tokens.sides == 1).sum()
    assert len(tokens) <= max(3, limit)
    assert first + second + tokens.cut == a + b
    if tokens.cut:
        assert len(tokens) == limit
        assert first == a or first >= second
        assert second == b or second >= first - 1


# --- hard texts ---------------------------------------------------------------------------------


@needs_roberta
def test_hard_texts_get_an_answer(roberta: Tokenizer, xlm_roberta: Tokenizer) -> None:
    texts = [
        "",
        "\x00",
        "a\x00b",
        "x" * 1_000_000,
        "שלום עולם",
        "👩‍👩‍👧‍👦",
        "\u202eabc",
        "\ufeff",
        " ",
    ]
    for tokenizer in (roberta, xlm_roberta):
        rows = tokenizer.encode(texts)
        assert all(isinstance(row, Tokens) and len(row) >= 2 for row in rows)
        assert len(rows[0]) == 2  # type: ignore[arg-type]


def test_a_lone_surrogate_is_an_error_for_its_row_alone(bert: Tokenizer) -> None:
    rows = bert.encode(["the", "a\ud800b", "cat"])
    assert isinstance(rows[1], TextError)
    assert "character 1" in str(rows[1])
    assert isinstance(rows[0], Tokens)
    assert isinstance(rows[2], Tokens)


def test_something_else_than_a_string_is_an_error_for_its_row_alone(bert: Tokenizer) -> None:
    rows = bert.encode(["the", 5])  # type: ignore[list-item]
    assert isinstance(rows[1], TextError)


def test_unequal_pairs(bert: Tokenizer) -> None:
    with pytest.raises(CallError):
        bert.encode(["a", "b"], ["c"])


def test_a_token_that_the_model_has_no_row_for(bert_folder: Path) -> None:
    short = Tokenizer.from_folder(bert_folder, "bert", rows=len(WORDS) - 1)
    rows = short.encode(["the", "a/"])
    assert isinstance(rows[0], Tokens)
    assert isinstance(rows[1], TextError)


# --- words --------------------------------------------------------------------------------------


@needs_roberta
def test_a_word_reads_as_a_person_writes_it(roberta: Tokenizer, bert: Tokenizer) -> None:
    assert roberta.word(one(roberta, "a France").ids[2:3]) == "France"
    assert roberta.word([roberta.mask_id]) == "<mask>"
    assert bert.word([WORDS.index("##t")]) == "t"
    assert bert.word([WORDS.index("ca"), WORDS.index("##t")]) == "cat"


@needs_roberta
def test_pieces_that_begin_and_continue_words(roberta: Tokenizer) -> None:
    size = roberta.vocab_size
    spaced, bare = (roberta.begins(size, after_space=space) for space in (True, False))
    later = roberta.continues(size)
    (france,) = roberta.word_ids("France", after_space=True)
    assert (spaced[france], bare[france], later[france]) == (True, False, False)
    (ing,) = roberta.word_ids("ing", after_space=False)
    assert (spaced[ing], bare[ing], later[ing]) == (False, True, True)
    (comma,) = roberta.word_ids(",", after_space=False)
    assert (spaced[comma], bare[comma], later[comma]) == (False, False, False)
    assert not spaced[roberta.special_ids].any()


def test_a_letter_that_is_another_algorithms_sign(xlm_roberta: Tokenizer) -> None:
    # Ġ is byte-level BPE's sign of a space, and to Unigram a (Maltese) letter like any other.
    (letter,) = (i for i in range(xlm_roberta.vocab_size) if xlm_roberta.pieces([i]) == ("Ġ",))
    assert xlm_roberta.continues(xlm_roberta.vocab_size)[letter]


def test_wordpiece_continues_with_its_marks(bert: Tokenizer) -> None:
    size = len(WORDS) + 3
    assert np.flatnonzero(bert.continues(size)).tolist() == [
        i for i, word in enumerate(WORDS) if word.startswith("##")
    ]


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "Nothing"}}'),
        ("tokenizer.json", "\x00" * 100),
        ("vocab.txt", ""),
        ("vocab.txt", "the\ncat\n"),
    ],
)
def test_damaged_files_are_one_line_errors(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelError) as caught:
        Tokenizer.from_folder(tmp_path, "bert")
    assert "\n" not in str(caught.value)


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path, "bert")


def test_another_familys_tokenizer_is_refused(bert_folder: Path) -> None:
    with pytest.raises(ModelError, match="lacks <s>"):
        Tokenizer.from_folder(bert_folder, "roberta")


def test_casing_follows_the_vocabulary_where_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS[:5], "A", "a", "C"]))
    tokenizer = Tokenizer.from_folder(tmp_path, "bert")
    assert tokenizer.pieces(one(tokenizer, "A C a").ids[1:-1]) == ("A", "C", "a")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    tokenizer = Tokenizer.from_folder(tmp_path, "bert")
    assert tokenizer.pieces(one(tokenizer, "A C a").ids[1:-1]) == ("a", "[UNK]", "a")


def test_every_family_names_its_special_tokens() -> None:
    assert {d.special_tokens[4] for d in DIALECTS.values()} == {"<mask>", "[MASK]"}


# --- ids alone, lower case ----------------------------------------------------------------------


@needs_roberta
@given(texts=st.lists(st.text() | st.sampled_from(["<mask> a", "\ud800", "</s>", "a  b"])))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ids_are_those_of_contents(texts: list[str], roberta: Tokenizer) -> None:
    for special in (True, False):
        found = roberta.ids(texts, special=special)
        for ids, tokens in zip(found, roberta.contents(texts, special=special), strict=True):
            if isinstance(tokens, TextError):
                assert isinstance(ids, TextError) and str(ids) == str(tokens)
            else:
                assert isinstance(ids, np.ndarray) and ids.dtype == np.int64
                assert np.array_equal(ids, tokens.ids)


def test_ids_know_what_the_model_has_no_row_for(bert_folder: Path) -> None:
    short = Tokenizer.from_folder(bert_folder, "bert", 7)
    known, unknown = short.ids(["the cat", "sat"])
    assert isinstance(known, np.ndarray) and isinstance(unknown, TextError)


@needs_roberta
def test_lower_case_comes_first(roberta: Tokenizer) -> None:
    lower = roberta.lower_cased()
    text = "The CAT, İ <mask> É"
    assert one(lower, text).ids.tolist() == one(roberta, "the cat, i\u0307 <mask> é").ids.tolist()
    # The original is as it was, and places are those of the text as it was given.
    assert one(roberta, text).ids.tolist() != one(lower, text).ids.tolist()
    assert [tuple(span) for span in one(lower, "İ É").spans[1:-1].tolist()][-1] == (2, 3)
    assert lower.lower_cased() is lower


def test_what_is_in_lower_case_stays_itself(bert: Tokenizer) -> None:
    assert bert.lower_cased() is bert
