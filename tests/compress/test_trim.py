"""A trimmed model reads covered text as before: tokens, hidden states; transformers does, too."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

import enrobe
from enrobe import checkpoint, cli
from enrobe.compress.trim import joined, trim
from enrobe.data.vocabulary import train_bpe
from enrobe.errors import CallError
from tests.support import reference
from tests.tasks.heads import WORDS, bert_folder
from tests.tasks.toys import word_tokenizer

TEXT = [
    "The cat sat on the mat, and the hat sat on the cat.",
    "Der Zug nach München fährt heute nicht, bitte nehmen Sie den Bus!",
    "naïve 日本語 😀 unbelievable unbelievably believing 2,000 times",
    "It was the best of times, it was the worst of times.",
] * 3


def folder_of(kind: str, folder: Path) -> int:
    """A random masked-LM model with a tokenizer of one kind; the size of its vocabulary."""
    if kind == "BPE":
        backend = train_bpe(TEXT, 360)
        family = "roberta"
    elif kind == "WordPiece":
        bert_folder(folder, "mlm")
        return 97
    else:
        family = "xlm-roberta"
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.NFKC()
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        trainer = trainers.UnigramTrainer(
            vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False
        )
        backend.train_from_iterator(TEXT, trainer)
        backend.post_processor = word_tokenizer(family).post_processor
        backend = with_template(backend)
    size = backend.get_vocab_size() + (backend.token_to_id("<mask>") is None)
    reference(folder, family, "mlm", seed=2, vocab_size=size)
    backend.save(str(folder / "tokenizer.json"))
    return size


def with_template(backend: Any) -> Any:
    state = json.loads(backend.to_str())
    state["post_processor"]["special_tokens"]["</s>"]["ids"] = [2]
    return tokenizers.Tokenizer.from_str(json.dumps(state))


@pytest.mark.parametrize("kind", ["BPE", "WordPiece", "Unigram"])
def test_covered_text_is_read_as_before(kind: str, tmp_path: Path) -> None:
    size = folder_of(kind, tmp_path / "model")
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    words = WORDS[5:40] if kind == "WordPiece" else " ".join(TEXT).split()[:20]
    corpus = [" ".join(chance.choices(words, k=chance.randint(1, 12))) for _ in range(40)]
    (tmp_path / "corpus.txt").write_text("\n".join(corpus), "utf-8")
    report = trim(tmp_path / "model", tmp_path / "small", corpus=tmp_path / "corpus.txt")
    assert report.texts == 40 and report.compared == 40
    assert report.rows[0] == size and report.rows[1] < size
    before, after = enrobe.load(tmp_path / "model"), enrobe.load(tmp_path / "small")
    assert (
        after.config.vocab_size
        == report.rows[1]
        == len(checkpoint.read(tmp_path / "small").tensors["heads.mlm.bias"])
    )
    # Texts of the same words in another order are covered, too.
    others = [" ".join(chance.choices(" ".join(corpus).split(), k=9)) for _ in range(20)]
    for text in (*corpus, *others):
        old, new = (m.tokenizer.encode([text])[0] for m in (before, after))
        pieces = [m.tokenizer.pieces(row.ids) for m, row in ((before, old), (after, new))]  # type: ignore[union-attr]
        assert pieces[0] == pieces[1]
        assert (before.hidden_states(text)[0] == after.hidden_states(text)[0]).all()
    mask = before.tokenizer.mask_token
    (old,), (new,) = (m.fill(f"{others[0]} {mask}", targets=[words[0]]) for m in (before, after))
    assert new.masks[0].candidates[0].tokens == old.masks[0].candidates[0].tokens
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "small/tokenizer.json")
    )
    assert theirs(corpus[0])["input_ids"] == after.tokenizer.encode([corpus[0]])[0].ids.tolist()  # type: ignore[union-attr]


def test_the_way_to_a_token() -> None:
    ranks = {("b", "c"): 0, ("a", "bc"): 1, ("a", "b"): 2, ("abc", "d"): 3}
    assert joined("abcd", ranks) == [("b", "c"), ("a", "bc"), ("abc", "d")]
    assert joined("a", ranks) == [] and joined("xyz", ranks) == []


def test_int8_stays_int8(tmp_path: Path) -> None:
    report = trim("enrobe-tiny", tmp_path / "small", corpus=write(tmp_path))
    assert report.file_bytes[1] < report.file_bytes[0]
    read = checkpoint.read(tmp_path / "small")
    whole = enrobe.load("enrobe-tiny")
    assert read.int8["embeddings.word.weight"].shape[0] == report.rows[1] < whole.config.vocab_size
    text = TEXT[0]
    assert (enrobe.load(tmp_path / "small").embed(text) == whole.embed(text)).all()


def write(folder: Path) -> Path:
    (folder / "corpus.txt").write_text("\n".join(TEXT), "utf-8")
    return folder / "corpus.txt"


def test_wrong_calls_and_the_command(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(CallError, match="no text that can be read"):
        trim("enrobe-tiny", tmp_path / "x", corpus=tmp_path / "empty.txt")
    given = ["trim", "enrobe-tiny", "--corpus", str(write(tmp_path)), "--output"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*given, str(tmp_path / "small")])
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rows"][1] < said["rows"][0] == 8192
