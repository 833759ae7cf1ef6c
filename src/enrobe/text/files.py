"""Tokenizer files, whatever their kind, to a tokenizer of the `tokenizers` library."""

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from enrobe.checkpoint import read_json
from enrobe.dialects import DIALECTS, Dialect
from enrobe.errors import ModelError
from enrobe.text.sentencepiece import SENTENCEPIECE, read_sentencepiece

_LARGEST_FILE = 256 * 2**20


def special_id(backend: tokenizers.Tokenizer, name: str, dialect: Dialect) -> int:
    """The id of a special token, or ModelError."""
    found = backend.token_to_id(name)
    if found is None:
        needed = " ".join(dialect.special_tokens)
        raise ModelError(f"the tokenizer lacks {name}; family {dialect.family} needs {needed}")
    return found


def spoken(backend: tokenizers.Tokenizer, dialect: Dialect) -> Dialect:
    """The dialect whose special tokens a tokenizer has: the family's own, or else another one's.

    multilingual-e5 and Multilingual-MiniLM are BERT encoders with XLM-R's tokenizer.
    """
    roberta = "xlm-roberta" if type(backend.model).__name__ == "Unigram" else "roberta"
    for known in (dialect, DIALECTS[roberta]):
        if all(backend.token_to_id(name) is not None for name in known.special_tokens):
            return known
    return dialect


def put_lower_case(backend: tokenizers.Tokenizer) -> bool:
    """Let a tokenizer put its texts in lower case before all else; False: it already does."""
    state = json.dumps(json.loads(backend.to_str())["normalizer"])
    if '"Lowercase"' in state or '"lowercase": true' in state:
        return False
    lower = [normalizers.Lowercase()]
    backend.normalizer = normalizers.Sequence(
        lower if backend.normalizer is None else [*lower, backend.normalizer]
    )
    return True


def load(folder: Path, family: str = "roberta") -> tokenizers.Tokenizer:
    """Read tokenizer.json, else vocab.json and merges.txt, vocab.txt, or sentencepiece's file.

    family: the model's, which decides what ids sentencepiece's pieces have.

    Raises:
        ModelError: none of them is there, or one is damaged.
    """
    names = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", SENTENCEPIECE)
    whole, vocab, merges, words, pieces = (folder / name for name in names)
    for path in (whole, vocab, merges, words, pieces):
        if path.is_file() and path.stat().st_size > _LARGEST_FILE:
            raise ModelError(f"{path.name}: larger than {_LARGEST_FILE >> 20} MiB; refused")
    try:
        if whole.is_file():
            return tokenizers.Tokenizer.from_str(whole.read_text("utf-8"))
        if vocab.is_file() and merges.is_file():
            return byte_level_bpe(vocab, merges)
        if words.is_file():
            return _wordpiece(words, folder / "tokenizer_config.json")
        if pieces.is_file():
            return read_sentencepiece(pieces, family)
    except ModelError:
        raise
    except BaseException as error:
        # The library's Rust code panics on some damaged files: that is no Exception in Python.
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise ModelError(f"tokenizer files are damaged ({error})") from None
    raise ModelError(
        "no tokenizer; allowed: tokenizer.json, vocab.json with merges.txt, vocab.txt, "
        f"or {SENTENCEPIECE}"
    )


def byte_level_bpe(vocab: Path, merges: Path) -> tokenizers.Tokenizer:
    """RoBERTa's tokenizer from GPT-2's two files."""
    dialect = DIALECTS["roberta"]
    first, last, _, _, mask = dialect.special_tokens
    backend = tokenizers.Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(
        (last, special_id(backend, last, dialect)),
        (first, special_id(backend, first, dialect)),
        trim_offsets=True,
        add_prefix_space=False,
    )
    backend.add_special_tokens(
        [AddedToken(name, lstrip=name == mask, normalized=False) for name in dialect.special_tokens]
    )
    return backend


def _wordpiece(path: Path, settings_path: Path) -> tokenizers.Tokenizer:
    settings = read_json(settings_path) if settings_path.is_file() else {}
    vocab: dict[str, int] = {}
    for line in path.read_text("utf-8").split("\n"):
        vocab.setdefault(line.rstrip("\r"), len(vocab))
    vocab.pop("", None)
    specials = DIALECTS["bert"].special_tokens
    first, last, _, unknown, _ = specials
    for name in specials:
        if name not in vocab:
            raise ModelError(f"vocab.txt lacks {name}")
    cased = any(word != word.lower() for word in vocab if word not in specials)
    lower = settings.get("do_lower_case")
    strip = settings.get("strip_accents")
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=settings.get("tokenize_chinese_chars") is not False,
        strip_accents=strip if isinstance(strip, bool) else None,
        # Where nothing says so, a vocabulary without a capital letter is an uncased one.
        lowercase=lower if isinstance(lower, bool) else not cased,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(first, vocab[first]), (last, vocab[last])],
    )
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in specials])
    return backend
