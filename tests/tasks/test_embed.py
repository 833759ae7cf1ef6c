"""Vectors of texts and of spans against pooling written out by hand over transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import enrobe
from enrobe.dialects import DIALECTS
from enrobe.errors import CallError, ModelError, TextError
from enrobe.text.tokenizer import Tokenizer
from enrobe.text.tokens import Tokens
from tests.support import FAMILIES, reference_outputs, scaled_error
from tests.tasks.toys import WORDS, Echo, sentence_files, word_folder, word_tokenizer, write

LONG = 30
POOLS = ("cls", "mean", "max", "mean_sqrt_len")
# Equal lengths apart, the empty text, what no vocabulary has, space at the ends, the longest row.
TEXTS = [
    "w5 w6 w7",
    "",
    " ".join(WORDS[:28]),
    "w9",
    "\tw7 w6  w5 ",
    "日本 e\u0301 🙂\u200d👩 \x00",
    " ".join(WORDS[40:55]),
    "w9",
]
DOUBLE = " ".join((WORDS * 2)[:42])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("roberta")
    word_folder(out, "roberta", seed=3, max_positions=LONG + 2)
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> enrobe.Model:
    return enrobe.load(folder)


def sentence_model(folder: Path, out: Path, *args: Any, **options: Any) -> enrobe.Model:
    """The model of a folder with sentence-transformers files beside it."""
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).symlink_to(path)
    sentence_files(out, *args, **options)
    return enrobe.load(out)


def pooled(states_TH: np.ndarray, pool: str) -> np.ndarray:
    exact_TH = states_TH.astype(np.float64)
    return {
        "cls": exact_TH[0],
        "mean": exact_TH.mean(0),
        "max": exact_TH.max(0),
        "mean_sqrt_len": exact_TH.sum(0) / len(exact_TH) ** 0.5,
    }[pool]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


# --- pooling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["onnx", "torch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_pool_and_layer_by_hand(family: str, engine: str, tmp_path: Path) -> None:
    offset = 2 if DIALECTS[family].offset_from_pad else 0
    theirs = word_folder(tmp_path, family, seed=5, max_positions=LONG + offset)
    ours = enrobe.load(tmp_path, engine=engine)  # type: ignore[arg-type]
    rows = [row.ids for row in ours.tokenizer.encode(TEXTS) if isinstance(row, Tokens)]
    hidden = reference_outputs(theirs, rows).hidden
    for layers, chosen in ((None, [3]), ((-1, -4), [3, 0]), (1, [1]), ((0, 1, 2), [0, 1, 2])):
        states = [row[chosen].mean(0) for row in hidden]
        for pool in (*POOLS, ("max", "cls"), ["mean", "cls", "mean_sqrt_len", "max"]):
            found = ours.embed(TEXTS, pool=pool, layers=layers)  # type: ignore[arg-type]
            names = [pool] if isinstance(pool, str) else pool
            wanted = [np.concatenate([pooled(s, name) for name in names]) for s in states]
            assert found.dtype == np.float32 and found.flags.c_contiguous
            assert scaled_error(found, wanted) <= 1e-5, (layers, pool)


def test_without_options_it_is_the_mean_of_the_last_layer(model: enrobe.Model) -> None:
    wanted = [states[-1].mean(0) for states in model.hidden_states(TEXTS)]
    assert scaled_error(model.embed(TEXTS), wanted) <= 1e-6
    assert np.array_equal(model.embed(TEXTS), model.embed(TEXTS, pool="mean", layers=-1))


@pytest.mark.parametrize(("engine", "limit"), [("onnx", 1e-6), ("torch", 5e-6)])
@pytest.mark.parametrize("pool", [*POOLS, POOLS])
def test_alone_equals_batched(engine: str, limit: float, pool: Any, folder: Path) -> None:
    model = enrobe.load(folder, engine=engine)  # type: ignore[arg-type]
    seed = 11
    print(f"seed {seed}")
    lengths = np.random.default_rng(seed).integers(0, 90, size=40)
    texts = [*TEXTS, *(" ".join((WORDS * 2)[:n]) for n in lengths)]
    alone = np.concatenate([model.embed(text, pool=pool) for text in texts])
    assert scaled_error(model.embed(texts, pool=pool), alone) <= limit


def test_shapes_without_texts(model: enrobe.Model) -> None:
    assert model.embed("w5").shape == (1, 56)
    assert model.embed([]).shape == (0, 56)
    assert model.embed([], pool=("cls", "max")).shape == (0, 112)
    assert model.embed([], truncate_dim=7, normalize=True).shape == (0, 7)
    assert model.embed([""]).shape == (1, 56) and np.isfinite(model.embed([""])).all()
    assert model.embed_spans([], []) == []
    assert model.embed_spans("w5", [])[0].shape == (0, 56)


def test_cut_and_length(model: enrobe.Model) -> None:
    plain = model.embed(TEXTS)
    assert np.array_equal(model.embed(TEXTS, truncate_dim=9), plain[:, :9])
    assert scaled_error(model.embed(TEXTS, normalize=True), unit(plain)) <= 1e-6
    # Cut before: a vector that is normalised has length 1.
    both = model.embed(TEXTS, normalize=True, truncate_dim=9)
    assert scaled_error(both, unit(plain[:, :9])) <= 1e-6


# --- long texts ---------------------------------------------------------------------------------


def test_windows_by_hand(model: enrobe.Model) -> None:
    # 42 tokens, 28 a window: windows at 0 and 14, and the line between them at 21.
    words = DOUBLE.split()
    first, second = (
        states[-1] for states in model.hidden_states([" ".join(words[:28]), " ".join(words[14:])])
    )
    whole_TH = np.concatenate([first[:22], second[8:]])
    assert len(whole_TH) == 44
    for pool in ("mean", "max", "mean_sqrt_len"):
        assert scaled_error(model.embed(DOUBLE, pool=pool)[0], pooled(whole_TH, pool)) <= 1e-6  # type: ignore[arg-type]
    both = model.embed([DOUBLE, "w5"], pool="cls")
    assert scaled_error(both[0], (first[0] + second[0]) / 2) <= 1e-6
    # 41 tokens, windows at 0 and 13: 21 of them count from the first.
    pieces = [" ".join(words[:28]), " ".join(words[13:41])]
    first, second = (states[-1] for states in model.hidden_states(pieces))
    wanted = (21 * first[0].astype(float) + 20 * second[0]) / 41
    assert scaled_error(model.embed(" ".join(words[:41]), pool="cls")[0], wanted) <= 1e-6


def test_truncate_and_refuse(model: enrobe.Model) -> None:
    short = " ".join(DOUBLE.split()[:28])
    assert np.array_equal(model.embed(DOUBLE, long="truncate"), model.embed(short))
    assert scaled_error(model.embed(DOUBLE), model.embed(short)) > 1e-3
    assert np.array_equal(model.embed(short, long="refuse"), model.embed(short))
    with pytest.raises(TextError, match=f"text 1: 44 tokens .* {LONG}; fix: long='window'"):
        model.embed(["w5", DOUBLE], long="refuse")


@given(count=st.integers(0, 150), longest=st.integers(3, 40), lead=st.integers(0, 12))
@settings(deadline=None)
def test_every_token_counts_once(count: int, longest: int, lead: int) -> None:
    tokenizer = Tokenizer(word_tokenizer("bert"), DIALECTS["bert"])
    engine = Echo(tokenizer, longest=longest)
    model = enrobe.Model(engine, tokenizer)
    prompt, text = " ".join(WORDS[-lead:] if lead else []) + " ", " ".join((WORDS * 2)[:count])
    if lead > (longest - 2) // 2:
        with pytest.raises(CallError, match=f"the prompt has {lead} tokens; allowed: "):
            model.embed(text, prompt=prompt)
        return
    (row,) = tokenizer.encode([prompt + text])
    assert isinstance(row, Tokens)
    # The first number of a vector is its id.
    assert model.embed(text, prompt=prompt)[0, 0] == pytest.approx(row.ids.mean())
    root = model.embed(text, prompt=prompt, pool="mean_sqrt_len")[0, 0]
    assert root == pytest.approx(row.ids.sum() / len(row) ** 0.5)
    for sent in engine.rows:
        assert len(sent) <= longest
        assert sent[1 : 1 + lead].tolist() == row.ids[1 : 1 + lead].tolist()


# --- folders of sentence-transformers -----------------------------------------------------------


def test_the_folder_says(folder: Path, model: enrobe.Model, tmp_path: Path) -> None:
    flags = {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}
    ours = sentence_model(folder, tmp_path / "a", flags, ("Normalize",))
    plain = model.embed(TEXTS, pool=("cls", "max"))
    assert scaled_error(ours.embed(TEXTS), unit(plain)) <= 1e-6
    assert np.array_equal(ours.embed(TEXTS, normalize=False), plain)
    assert scaled_error(ours.embed(TEXTS, truncate_dim=60), unit(plain[:, :60])) <= 1e-6
    mean = model.embed(TEXTS, pool="mean")
    assert scaled_error(ours.embed(TEXTS, pool="mean"), unit(mean)) <= 1e-6


def test_its_length_is_a_window_and_where_to_cut(
    folder: Path, model: enrobe.Model, tmp_path: Path
) -> None:
    ours = sentence_model(
        folder, tmp_path / "a", {"pooling_mode": "mean"}, lengths={"max_seq_length": 16}
    )
    text = " ".join(WORDS[:14])
    for long in ("window", "truncate", "refuse"):
        assert np.array_equal(ours.embed(text, long=long), model.embed(text))
    longer = " ".join(WORDS[:17])
    assert np.array_equal(ours.embed(longer, long="truncate"), model.embed(text))
    with pytest.raises(TextError, match=r"19 tokens .* a row has 16"):
        ours.embed(longer, long="refuse")
    first, second = (states[-1] for states in model.hidden_states([text, " ".join(WORDS[3:17])]))
    # Windows at 0 and 3, and the line between them at 9.
    whole_TH = np.concatenate([first[:10], second[7:]])
    assert scaled_error(ours.embed(longer)[0], pooled(whole_TH, "mean")) <= 1e-6
    # The encoder itself reads as far as it can.
    assert ours.hidden_states(longer)[0].shape == (4, 19, 56)


def test_a_length_beyond_the_model_is_the_model_s(folder: Path, tmp_path: Path) -> None:
    ours = sentence_model(
        folder, tmp_path / "a", {"pooling_mode": "mean"}, lengths={"max_seq_length": 512}
    )
    with pytest.raises(TextError, match=f"44 tokens .* a row has {LONG}"):
        ours.embed(DOUBLE, long="refuse")


PROMPTS = {"prompts": {"query": "w50 w51 ", "plain": ""}, "default_prompt_name": "query"}


def test_prompts(folder: Path, model: enrobe.Model, tmp_path: Path) -> None:
    ours = sentence_model(folder, tmp_path / "a", {"pooling_mode": "mean"}, settings=PROMPTS)
    texts = [text for text in TEXTS if len(text) < 100]
    with_prompt = model.embed(["w50 w51 " + text for text in texts])
    assert np.array_equal(ours.embed(texts), with_prompt)
    assert np.array_equal(ours.embed(texts, prompt="query"), with_prompt)
    assert np.array_equal(ours.embed(texts, prompt="w50 w51 "), with_prompt)
    for none in ("plain", ""):
        assert np.array_equal(ours.embed(texts, prompt=none), model.embed(texts))
    with pytest.raises(
        CallError, match=r"'quary' is not .* \(query, plain\); did you mean 'query'"
    ):
        ours.embed("w5", prompt="quary")
    with pytest.raises(CallError, match=r"\(none\); a literal prefix ends with a space or a sign"):
        model.embed("w5", prompt="query")
    with pytest.raises(CallError, match=r"half of a surrogate pair"):
        model.embed("w5", prompt="\ud800 ")


@pytest.mark.parametrize("pool", POOLS)
def test_a_prompt_may_be_left_out_of_the_pool(
    pool: str, folder: Path, model: enrobe.Model, tmp_path: Path
) -> None:
    pooling = {"pooling_mode": pool.replace("_len", "_len_tokens"), "include_prompt": False}
    ours = sentence_model(folder, tmp_path / "a", pooling, settings=PROMPTS)
    texts = [text for text in TEXTS if len(text) < 100]
    states = model.hidden_states(["w50 w51 " + text for text in texts])
    # The first token goes with the prompt.
    wanted = [pooled(one[-1][3:], pool) for one in states]
    assert scaled_error(ours.embed(texts), wanted) <= 1e-6
    # 39 tokens after the prompt: windows of 26 at 0 and 13, each behind the prompt.
    words = DOUBLE.split()[:39]
    pieces = [" ".join(["w50 w51", *part]) for part in (words[:26], words[13:])]
    first, second = (states[-1] for states in model.hidden_states(pieces))
    by_hand = pooled(np.concatenate([first[3:23], second[10:]]), pool)
    if pool == "cls":
        by_hand = (20 * first[3].astype(float) + 19 * second[3]) / 39
    assert scaled_error(ours.embed(" ".join(words))[0], by_hand) <= 1e-6


def dense_files(folder: Path, weight: np.ndarray, bias: np.ndarray | None, activation: str) -> None:
    sizes = {"in_features": weight.shape[1], "out_features": len(weight)}
    named = f"torch.nn.modules.activation.{activation}"
    write(folder / "config.json", {**sizes, "bias": bias is not None, "activation_function": named})
    tensors = {"linear.weight": weight} | ({} if bias is None else {"linear.bias": bias})
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def test_dense_layers(folder: Path, model: enrobe.Model, tmp_path: Path) -> None:
    ours = sentence_model(
        folder, tmp_path / "a", {"pooling_mode": ["cls", "mean"]}, ("Dense", "Dense", "Normalize")
    )
    for number in (2, 3):
        (tmp_path / f"a/{number}_Dense").mkdir()
    generator = np.random.default_rng(4)
    one, two = (generator.normal(size=size).astype(np.float32) for size in ((23, 112), (11, 23)))
    bias = generator.normal(size=11).astype(np.float32)
    pools_NK = model.embed(TEXTS, pool=("cls", "mean")).astype(np.float64)
    curves = {
        "Tanh": np.tanh,
        "ReLU": lambda x: np.maximum(x, 0),
        "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
        "Identity": lambda x: x,
    }
    dense_files(tmp_path / "a/2_Dense", one / 20, None, "Tanh")
    for name, curve in curves.items():
        dense_files(tmp_path / "a/3_Dense", two, bias, name)
        ours = enrobe.load(tmp_path / "a")
        wanted_ND = curve(np.tanh(pools_NK @ one.T / 20) @ two.T + bias)
        assert scaled_error(ours.embed(TEXTS), unit(wanted_ND)) <= 1e-5
        assert scaled_error(ours.embed(TEXTS, normalize=False), wanted_ND) <= 1e-5
        assert ours.embed(TEXTS, truncate_dim=5).shape == (len(TEXTS), 5)
        # A pool that is given leaves the folder's layers out, and keeps its normalisation.
        assert (
            scaled_error(ours.embed(TEXTS, pool="max"), unit(model.embed(TEXTS, pool="max"))) < 1e-6
        )
    # All zeros, and normalised: zeros, not NaN.
    dense_files(tmp_path / "a/3_Dense", 0 * two, None, "ReLU")
    assert not enrobe.load(tmp_path / "a").embed(TEXTS).any()
    dense_files(tmp_path / "a/3_Dense", two[:, :20], None, "ReLU")
    with pytest.raises(CallError, match="Dense layer takes 20 numbers, and its pooling gives 23"):
        enrobe.load(tmp_path / "a").embed(TEXTS)


def test_lower_case(tmp_path: Path) -> None:
    word_folder(tmp_path, "bert", seed=3, max_positions=LONG)
    plain = enrobe.load(tmp_path)
    assert not plain.sentence.lower_case
    sentence_files(tmp_path, {"pooling_mode": "mean"}, lengths={"do_lower_case": True})
    ours = enrobe.load(tmp_path)
    assert scaled_error(plain.embed("W5 W6"), plain.embed("w5 w6")) > 1e-3
    assert np.array_equal(ours.embed("W5 W6"), plain.embed("w5 w6"))
    # A special token of the text stays one.
    assert np.array_equal(ours.embed("W5 [SEP]"), plain.embed("w5 [SEP]"))


def test_a_damaged_folder_fails_where_it_is_asked(folder: Path, tmp_path: Path) -> None:
    ours = sentence_model(folder, tmp_path / "a", {"pooling_mode": "lasttoken"})
    assert ours.hidden_states("w5")[0].shape == (4, 3, 56)
    with pytest.raises(ModelError, match="pooling_mode is 'lasttoken'; allowed: cls, max, mean"):
        ours.embed("w5")


# --- spans --------------------------------------------------------------------------------------


def test_spans_are_pooled_in_context(model: enrobe.Model) -> None:
    text = "w5 w6  w7 w8"
    states = model.hidden_states(text)[0][-1][1:-1]
    spans = [(0, 12), (0, 5), (3, 9), (4, 8), (7, 8), (10, 12), (0, 2)]
    inside = [slice(0, 4), slice(0, 2), slice(1, 3), slice(1, 3), slice(2, 3), slice(3, 4)]
    inside.append(slice(0, 1))
    (found,) = model.embed_spans(text, spans)
    assert scaled_error(found, [states[part].mean(0) for part in inside]) <= 1e-6
    (found,) = model.embed_spans([text], [spans], pool=("max", "mean"), layers=0, normalize=True)
    low = model.hidden_states(text)[0][0][1:-1]
    wanted = [np.concatenate([low[part].max(0), low[part].mean(0)]) for part in inside]
    assert scaled_error(found, unit(np.array(wanted))) <= 1e-6
    # In context: the same word has another vector elsewhere.
    alone = model.embed_spans("w7", [(0, 2)])[0][0]
    assert scaled_error(found[4][-56:], alone) > 1e-3


def test_a_prompt_is_context_and_in_no_span(model: enrobe.Model) -> None:
    states = model.hidden_states("w50 w51 w5 w6")[0][-1]
    (found,) = model.embed_spans("w5 w6", [(0, 5), (3, 5)], prompt="w50 w51 ")
    assert scaled_error(found, [states[3:5].mean(0), states[4]]) <= 1e-6


@given(data=st.data(), count=st.integers(1, 120), longest=st.integers(3, 40))
@settings(deadline=None)
def test_spans_whatever_their_windows(data: st.DataObject, count: int, longest: int) -> None:
    tokenizer = Tokenizer(word_tokenizer("bert"), DIALECTS["bert"])
    model = enrobe.Model(Echo(tokenizer, longest=longest), tokenizer)
    words = data.draw(st.lists(st.sampled_from(WORDS), min_size=count, max_size=count))
    text = data.draw(st.sampled_from([" ", "  ", "\n"])).join(words)
    (tokens,) = tokenizer.contents([text])
    assert isinstance(tokens, Tokens)
    place = st.integers(0, len(text))
    spans = [
        (a, b)
        for a, b in data.draw(st.lists(st.tuples(place, place), max_size=6))
        if a < b and text[a:b].strip()
    ]
    (found,) = model.embed_spans(text, spans)
    (peak,) = model.embed_spans(text, spans, pool="max")
    (vectors,) = model.tokens(text)
    assert found.shape == (len(spans), 4)
    for n, (a, b) in enumerate(spans):
        inside = [i for i, (c, d) in enumerate(vectors.offsets) if c < b and d > a]
        assert found[n] == pytest.approx(vectors.vectors[inside].mean(0))
        assert np.array_equal(peak[n], vectors.vectors[inside].max(0))


def test_spans_that_are_none(model: enrobe.Model) -> None:
    text = "w5  w6"
    for span, said in (
        ((0, 7), r"span \(0, 7\); allowed: 0 <= start < end <= 6"),
        ((-1, 3), "allowed: 0 <= start"),
        ((3, 3), "allowed: 0 <= start"),
        ((2, 4), r"span \(2, 4\), ' ', has no token$"),
    ):
        with pytest.raises(TextError, match=said):
            model.embed_spans(text, [span])
        good, bad = model.embed_spans([text, text], [[(0, 2)], [(0, 1), span]], errors="collect")
        assert good.shape == (1, 56) and np.isfinite(good).all()
        assert bad.shape == (2, 56) and np.isnan(bad).all()
    with pytest.raises(TextError, match="has no token, or in the 14 that were cut"):
        model.embed_spans(DOUBLE, [(len(DOUBLE) - 2, len(DOUBLE))], long="truncate")
    for spans in ([(0, 1)], [[1]], [["ab"]], 5, [[(0, 1.5)]], None):
        with pytest.raises(CallError, match=r"spans is .*; allowed: for each text a list of"):
            model.embed_spans([text], spans)  # type: ignore[arg-type]
    with pytest.raises(CallError, match="2 texts and spans for 1"):
        model.embed_spans([text, text], [[(0, 1)]])
    with pytest.raises(CallError, match="which a span does not have; fix: pool='mean'"):
        model.embed_spans(text, [(0, 1)], pool="cls")


# --- similarity ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cosine", "dot", "dot_product", "euclidean", "manhattan", None])
def test_similarity_as_the_folder_says(name: str | None, folder: Path, tmp_path: Path) -> None:
    ours = sentence_model(
        folder, tmp_path / "a", {"pooling_mode": "mean"}, settings={"similarity_fn_name": name}
    )
    a, b = ours.embed(TEXTS[:3]).astype(float), ours.embed(TEXTS[3:]).astype(float)
    difference = a[:, None] - b[None]
    wanted = {
        "dot": a @ b.T,
        "dot_product": a @ b.T,
        "euclidean": -np.sqrt((difference**2).sum(-1)),
        "manhattan": -np.abs(difference).sum(-1),
    }.get(str(name), unit(a) @ unit(b).T)
    for left in (TEXTS[:3], a.astype(np.float32), np.array(TEXTS[:3])):
        found = ours.similarity(left, TEXTS[3:])
        assert found.dtype == np.float32 and scaled_error(found, wanted) <= 1e-5
    assert ours.similarity("w5", "w6").shape == (1, 1)
    assert ours.similarity([], TEXTS).shape == (0, len(TEXTS))


def test_arrays_that_do_not_fit(model: enrobe.Model) -> None:
    zeros = np.zeros((2, 56), np.float32)
    assert not model.similarity(zeros, TEXTS).any()
    for array in (zeros[0], zeros[None], zeros > 0, zeros.astype(complex)):
        with pytest.raises(CallError, match=r"an array \(N, D\) of numbers, not an array"):
            model.similarity(array, zeros)
    with pytest.raises(CallError, match="a has vectors of 5 numbers and b of 56"):
        model.similarity(zeros[:, :5], "w5")


# --- errors -------------------------------------------------------------------------------------


def test_a_bad_text_is_a_row_of_nan(model: enrobe.Model) -> None:
    texts: Sequence[Any] = ["w5", "\ud800", None, DOUBLE, "w5", b"w5"]
    with pytest.raises(TextError, match=r"text 1: character 0 is .* surrogate"):
        model.embed(texts)
    for pool in (*POOLS, POOLS):
        found = model.embed(texts, errors="collect", long="refuse", normalize=True, pool=pool)  # type: ignore[arg-type]
        assert np.isnan(found).all(1).tolist() == [False, True, True, True, False, True]
        assert np.array_equal(found[0], found[4])
        assert np.isfinite(found[0]).all()
    prompted = model.embed(texts, errors="collect", prompt="w7 ")
    assert np.isnan(prompted).all(1).tolist() == [False, True, True, False, False, True]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pool": "maen"}, "did you mean 'mean'"),
        ({"pool": ()}, "pool is"),
        ({"pool": ("cls", "cls")}, "once"),
        ({"pool": 3}, "pool is 3; allowed: cls, max, mean, mean_sqrt_len"),
        ({"layers": 4}, "layers is 4; allowed: 0"),
        ({"normalize": "yes"}, "allowed: True or False"),
        ({"special": None}, "allowed: True or False"),
        ({"truncate_dim": 0}, "truncate_dim is 0; allowed: a whole number from 1"),
        ({"truncate_dim": True}, "truncate_dim is True"),
        ({"truncate_dim": 57}, "truncate_dim is 57; the vectors have 56 numbers"),
        ({"prompt": 5}, "prompt is 5; allowed: a string"),
        ({"prompt": " ".join(WORDS[:15]) + " "}, "the prompt has 15 tokens; allowed: 14"),
        ({"long": "cut"}, "long is 'cut'; allowed: window, truncate, refuse"),
        ({"errors": "ignore"}, "errors is 'ignore'; allowed: raise, collect"),
    ],
)
def test_mistakes(model: enrobe.Model, options: dict[str, Any], said: str) -> None:
    with pytest.raises(CallError, match=said):
        model.embed(["w5"], **options)
    with pytest.raises(CallError, match=said):
        model.embed_spans(["w5"], [[(0, 2)]], **options)


def test_a_literal_special_token_is_plain_text_on_request(model: enrobe.Model) -> None:
    assert np.array_equal(model.embed("w5</s>"), model.embed("w5 </s>"))
    assert np.array_equal(model.embed("w5</s>", special=False), model.embed("unknown"))
