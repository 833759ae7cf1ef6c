"""Hidden states of every layer against transformers; vectors of tokens and words, with places."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import enrobe
from enrobe.dialects import DIALECTS
from enrobe.errors import CallError, TextError
from enrobe.text.files import load
from enrobe.text.tokenizer import Tokenizer
from enrobe.text.tokens import Tokens
from tests.support import FAMILIES, SHARED, reference_outputs, scaled_error
from tests.tasks.toys import WORDS, Echo, word_folder, word_tokenizer

LONG = 30
TEXTS = [
    "w5 w6 w7",
    "",
    " ".join(WORDS[:28]),
    "w9",
    "w7 w6 w5",
    "unknown w8 \t w8",
    " ".join(WORDS[40:55]),
]
SIGNS = "aZé\u0301ßſﬁ½\u00b4日本🙂👩‍👩‍👧 \t\n\u00a0\u200b\u00ad.'-<mask>[UNK]0９İ"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> enrobe.Model:
    folder = tmp_path_factory.mktemp("roberta")
    word_folder(folder, "roberta", seed=3, max_positions=LONG + 2)
    return enrobe.load(folder)


# --- hidden states ------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["onnx", "torch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_equals_transformers(family: str, engine: str, tmp_path: Path) -> None:
    longest = 512 + (2 if DIALECTS[family].offset_from_pad else 0)
    theirs = word_folder(tmp_path, family, seed=7, max_positions=longest)
    ours = enrobe.load(tmp_path, engine=engine)  # type: ignore[arg-type]
    texts = [*TEXTS, " ".join((WORDS * 6)[:510])]
    rows = [row.ids for row in ours.tokenizer.encode(texts) if isinstance(row, Tokens)]
    assert max(len(row) for row in rows) == ours.config.max_tokens == 512
    found = ours.hidden_states(texts)
    expected = reference_outputs(theirs, rows).hidden
    for states, row, wanted in zip(found, rows, expected, strict=True):
        assert states.shape == (4, len(row), 56) and states.dtype == np.float32
        for layer in range(4):
            assert scaled_error(states[layer], wanted[layer]) <= 1e-5


def test_a_text_longer_than_the_model_is_refused(model: enrobe.Model) -> None:
    long = " ".join(WORDS[:29])
    with pytest.raises(TextError, match=f"31 tokens .* a row has {LONG}; fix: Model.tokens"):
        model.hidden_states(long)
    found = model.hidden_states(["w5", long, "\ud800", "w5"], errors="collect")
    assert [states.shape for states in found] == [(4, 3, 56), (4, 1, 56), (4, 1, 56), (4, 3, 56)]
    assert np.isnan(found[1]).all() and np.isnan(found[2]).all()
    assert np.array_equal(found[0], found[3])


def test_one_string_and_none(model: enrobe.Model) -> None:
    assert len(model.hidden_states("w5 w6")) == 1
    assert model.hidden_states([]) == [] and model.tokens([]) == []


# --- tokens -------------------------------------------------------------------------------------


def test_tokens_are_the_hidden_states_without_specials(model: enrobe.Model) -> None:
    for layers, chosen in (((-1,), [3]), (0, [0]), ((-4, 2), [0, 2]), ((1, 2, 3), [1, 2, 3])):
        found = model.tokens(TEXTS, layers=layers)
        for text, one, states in zip(TEXTS, found, model.hidden_states(TEXTS), strict=True):
            wanted = states[chosen].mean(0)[1:-1]
            assert one.vectors.shape == wanted.shape
            assert np.allclose(
                one.vectors, wanted, rtol=0, atol=1e-6 * max(1, np.abs(wanted).max(initial=0))
            )
            assert [text[a:b] for a, b in one.offsets] == text.split()
            assert one.error is None


def test_a_result_is_json(model: enrobe.Model) -> None:
    (one,) = model.tokens("w5 nothing")
    again = json.loads(json.dumps(one.to_dict()))
    assert list(again) == ["tokens", "offsets", "vectors", "error"]
    assert again["tokens"] == ["w5", "<unk>"] and again["offsets"] == [[0, 2], [3, 10]]
    assert np.array_equal(np.array(again["vectors"], np.float32), one.vectors)


def test_a_text_without_tokens_has_no_vectors(model: enrobe.Model) -> None:
    for text in ("", "  \n"):
        (one,) = model.tokens(text)
        assert (one.tokens, one.offsets, one.vectors.shape) == ((), (), (0, 56))
        (one,) = model.tokens(text, words=True)
        assert (one.tokens, one.offsets, one.vectors.shape) == ((), (), (0, 56))


def test_mistakes(model: enrobe.Model) -> None:
    for layers in (4, (-5,), (), (3, -1), True, "last", (1.0,)):
        with pytest.raises(CallError, match=r"layers is .*allowed: 0 \(the embeddings\) to 3"):
            model.tokens("w5", layers=layers)  # type: ignore[arg-type]
    with pytest.raises(CallError, match="did you mean 'window'"):
        model.tokens("w5", long="windows")  # type: ignore[arg-type]
    with pytest.raises(TextError, match=r"text 1: .* surrogate"):
        model.tokens(["w5", "\udc00"])
    bad, good = model.tokens(["\udc00", "w5"], errors="collect")
    assert bad.error and bad.tokens == () and bad.vectors.shape == (0, 0)
    assert good.error is None and len(good.tokens) == 1


# --- long texts ---------------------------------------------------------------------------------


@given(count=st.integers(0, 200), longest=st.integers(3, 40))
@settings(deadline=None)
def test_each_token_is_read_where_it_is_nearest_the_middle(count: int, longest: int) -> None:
    tokenizer = Tokenizer(word_tokenizer("bert"), DIALECTS["bert"])
    model = enrobe.Model(Echo(tokenizer, longest=longest), tokenizer)
    text = " ".join((WORDS * 3)[:count])
    (tokens,) = tokenizer.contents([text])
    assert isinstance(tokens, Tokens)
    (found,) = model.tokens(text)
    assert found.vectors[:, 0].tolist() == tokens.ids.tolist()
    room = longest - 2
    if count <= room:
        assert (found.vectors[:, 2] == count + 2).all()
        return
    assert (found.vectors[:, 2] == longest).all()
    # From the token to the nearer end of its row, in tokens of the text that are not its end.
    place = found.vectors[:, 1] - 1
    start = np.arange(count) - place
    left = np.where(start == 0, room, place)
    right = np.where(start == count - room, room, room - 1 - place)
    assert (np.minimum(left, right) >= room // 4 - 1).all()
    assert ((start >= 0) & (start <= count - room)).all()


def test_a_long_text_equals_its_windows_by_hand(model: enrobe.Model) -> None:
    # 42 tokens, 28 a window: windows at 0 and 14, and the line between them at 21.
    words = (WORDS * 2)[:42]
    (found,) = model.tokens(" ".join(words))
    first, second = model.hidden_states([" ".join(words[:28]), " ".join(words[14:])])
    by_hand = np.concatenate([first[-1][1:22], second[-1][8:29]])
    assert scaled_error(found.vectors, by_hand) <= 1e-6
    cut = model.tokens(" ".join(words), long="truncate")[0]
    assert scaled_error(cut.vectors, first[-1][1:29]) <= 1e-6
    with pytest.raises(TextError, match=r"44 tokens .* a row has 30; fix: long='window'"):
        model.tokens(" ".join(words), long="refuse")


# --- words and places, in real vocabularies -----------------------------------------------------


@pytest.fixture(scope="module", params=["roberta", "xlm-roberta", "bert"])
def vocabulary(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> enrobe.Model:
    folder = tmp_path_factory.mktemp("vocabulary")
    if request.param == "bert":
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a", "z", "##z", "ß", "0"]
        (folder / "vocab.txt").write_text("\n".join([*pieces, "e", "##e", ".", "'", "日", "🙂"]))
    elif not (SHARED / "tokenizers").is_dir():
        pytest.skip("the vocabulary files are not on this machine")
    elif request.param == "roberta":
        folder = SHARED / "tokenizers/roberta-base"
    else:
        packed = SHARED / "tokenizers/xlm-roberta/tokenizer.json.xz"
        (folder / "tokenizer.json").write_bytes(lzma.decompress(packed.read_bytes()))
    tokenizer = Tokenizer(load(folder), DIALECTS[request.param])
    return enrobe.Model(Echo(tokenizer, longest=12), tokenizer)


@given(text=st.text(st.sampled_from(SIGNS) | st.characters(exclude_categories=["Cs"])))
@settings(deadline=None, max_examples=150)
def test_places_are_right_whatever_the_text(vocabulary: enrobe.Model, text: str) -> None:
    (tokens,) = vocabulary.tokenizer.contents([text])
    assert isinstance(tokens, Tokens)
    (pieces,) = vocabulary.tokens(text)
    assert pieces.vectors[:, 0].tolist() == tokens.ids.tolist()
    assert pieces.tokens == vocabulary.tokenizer.pieces(tokens.ids)
    for start, end in pieces.offsets:
        assert 0 <= start <= end <= len(text)
        assert text[start:end].strip() in (text[start:end], "")
    (words,) = vocabulary.tokens(text, words=True)
    assert len(words.tokens) == len(words.offsets) == len(words.vectors)
    for word, (start, end) in zip(words.tokens, words.offsets, strict=True):
        assert word == text[start:end] and word.strip() == word != ""
    assert list(words.offsets) == sorted(words.offsets)
    # What tokens cover, words cover.
    covered = {i for a, b in pieces.offsets for i in range(a, b) if text[a:b].strip()}
    assert covered <= {i for start, end in words.offsets for i in range(start, end)}
    assert_means(words, pieces, tokens)


def assert_means(words: enrobe.TokenVectors, pieces: enrobe.TokenVectors, tokens: Tokens) -> None:
    means = [pieces.vectors[tokens.words == n].mean(0) for n in np.unique(tokens.words)]
    for vector in words.vectors:
        assert any(vector == pytest.approx(mean) for mean in means)


@pytest.mark.parametrize(
    ("vocabulary", "text", "expected"),
    [
        ("roberta", "  Don't  stop 🙂!", ["Don", "'t", "stop", "🙂!"]),
        ("roberta", "İstanbul é日本", ["İstanbul", "é日本"]),
        ("roberta", "a <mask> b", ["a", "<mask>", "b"]),
        ("xlm-roberta", "  Don't  stop 🙂!", ["Don't", "stop", "🙂!"]),
        ("xlm-roberta", "ﬁne ½ 日本語", ["ﬁne", "½", "日本語"]),
        ("bert", "aza  a.", ["aza", "a", "."]),
    ],
    indirect=["vocabulary"],
)
def test_words(vocabulary: enrobe.Model, text: str, expected: list[str]) -> None:
    (words,) = vocabulary.tokens(text, words=True)
    assert list(words.tokens) == expected
    (tokens,) = vocabulary.tokenizer.contents([text])
    assert isinstance(tokens, Tokens)
    (pieces,) = vocabulary.tokens(text)
    assert_means(words, pieces, tokens)


def test_a_literal_mask_is_plain_text_on_request(vocabulary: enrobe.Model) -> None:
    mask = vocabulary.tokenizer.mask_token
    assert vocabulary.tokens(mask)[0].tokens == (mask,)
    assert mask not in vocabulary.tokens(mask, special=False)[0].tokens
