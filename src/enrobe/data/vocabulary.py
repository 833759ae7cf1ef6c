"""Train a byte-level BPE vocabulary on text files, laid out as RoBERTa's.

The merges are learned by the `tokenizers` library. Every string can be written with the result: its
alphabet is the 256 bytes, spelled as in GPT-2 (Radford et al. 2019, section 2.2).
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from enrobe.atomic import check_new, new_folder
from enrobe.data.readers import Source
from enrobe.dialects import DIALECTS
from enrobe.errors import CallError, show
from enrobe.text.tokenizer import Tokenizer

SMALLEST, LARGEST = 8_192, 50_265
# RoBERTa's ids of its special tokens; the mask is the last entry.
_FIRST, _PAD, _LAST, _UNKNOWN = range(4)


def train_vocabulary(
    folder: Path, sources: Sequence[Path], *, size: int, model_max_length: int = 512
) -> Tokenizer:
    """Train on files and write tokenizer.json and tokenizer_config.json, both or neither.

    The same files in the same order give the same bytes. Memory grows with the number of different
    words, not with the files.

    Args:
        folder: a new folder; with a config.json of model_type roberta beside the two files,
            transformers reads the same tokenizer from it.
        sources: what `readers.Source` reads; rows that are not UTF-8 are left out.
        size: entries, special tokens included, 8,192 to 50,265.
        model_max_length: the longest row of the model in tokens, special tokens included.

    Raises:
        CallError: a size out of range, a file that cannot be read, text too short for the size, or
            a folder that is not empty or cannot be written.
    """
    return write_vocabulary(folder, read_texts(sources), size, model_max_length)


def write_vocabulary(
    folder: Path, texts: Iterable[str], size: int, model_max_length: int = 512
) -> Tokenizer:
    """`train_vocabulary`, on texts that are at hand."""
    if not SMALLEST <= size <= LARGEST:
        raise CallError(f"vocabulary size {show(size)}; allowed: {SMALLEST} to {LARGEST}")
    check_new(folder)
    backend = train_bpe(texts, size)
    first, last, pad, unknown, mask = DIALECTS["roberta"].special_tokens
    settings = {
        "tokenizer_class": DIALECTS["roberta"].tokenizer_class,
        "model_max_length": model_max_length,
        "add_prefix_space": False,
        "cls_token": first,
        "sep_token": last,
        "pad_token": pad,
        "unk_token": unknown,
        "mask_token": mask,
    }
    with new_folder(folder) as work:
        (work / "tokenizer.json").write_text(backend.to_str(), "utf-8")
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        (work / "tokenizer_config.json").write_text(text, "utf-8")
    return Tokenizer.from_folder(folder, "roberta")


def train_bpe(texts: Iterable[str], size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE of exactly `size` entries with RoBERTa's special tokens.

    Raises:
        CallError: the texts have too few pairs that occur twice.
    """
    first, last, pad, unknown, mask = DIALECTS["roberta"].special_tokens
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    # One entry is kept for the mask, which stands behind all merges.
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        min_frequency=2,
        show_progress=False,
        special_tokens=[AddedToken(name, normalized=False) for name in (first, pad, last, unknown)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(iter(texts), trainer)
    reached = backend.get_vocab_size() + 1
    if reached != size:
        raise CallError(
            f"the text gives a vocabulary of {reached} entries, not {size}; "
            "fix: name a smaller size, or more text"
        )
    state = json.loads(backend.to_str())
    # RoBERTa's own file lists the mask in the model's vocabulary, too.
    state["model"]["vocab"][mask] = size - 1
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    backend.add_special_tokens([AddedToken(mask, lstrip=True, normalized=False)])
    backend.post_processor = processors.RobertaProcessing(
        (last, _LAST), (first, _FIRST), trim_offsets=True, add_prefix_space=False
    )
    ids = [backend.token_to_id(name) for name in (first, pad, last, unknown, mask)]
    assert ids == [_FIRST, _PAD, _LAST, _UNKNOWN, size - 1]
    return backend


def read_texts(sources: Sequence[Path]) -> Iterator[str]:
    """The rows of files that are text."""
    for path in sources:
        for row in Source(path):
            # Half a surrogate pair, as a JSON file may hold, is no text to the library.
            if row.error is None and (row.text.isascii() or _is_unicode(row.text)):
                yield row.text


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
