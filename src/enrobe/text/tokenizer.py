"""Strings <-> token ids, with the character offsets that lead back.

The splitting itself is the `tokenizers` library's. What stands here: special tokens,
text that a library call would trip over, and cuts that are never silent.

Legend: T tokens.
"""

import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import AddedToken, Encoding

from enrobe.dialects import DIALECTS, Dialect
from enrobe.errors import CallError, ModelError, TextError, show
from enrobe.text.files import load, put_lower_case, special_id, spoken
from enrobe.text.ragged import Ids
from enrobe.text.tokens import Tokens, join, of_encoding, of_specials


@dataclass(frozen=True)
class _Template:
    """The special tokens around one text (a) or two (a, b), and the types they all take."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    second_type: int

    @property
    def size(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


class Tokenizer:
    """One family's tokenizer. Safe to use from several threads: nothing in it changes."""

    def __init__(
        self, backend: tokenizers.Tokenizer, dialect: Dialect, rows: int | None = None
    ) -> None:
        """Wrap a `tokenizers.Tokenizer`; use `from_folder` to read one from files.

        rows: how many ids the model has embeddings for; a text that needs another is an error.
        """
        backend.no_truncation()
        backend.no_padding()
        dialect = spoken(backend, dialect)
        self._backend = backend
        self._dialect = dialect
        self._rows = rows
        names = dialect.special_tokens
        first, last, pad, unk, mask = (special_id(backend, name, dialect) for name in names)
        self.first_id, self.last_id, self.pad_id, self.unk_id, self.mask_id = (
            first,
            last,
            pad,
            unk,
            mask,
        )
        self.mask_token = names[4]
        # RoBERTa's kin write a masked word without the space before it; a tokenizer.json that was
        # rebuilt from a vocabulary may have lost that.
        settings = backend.get_added_tokens_decoder().get(mask)
        if settings is None or (dialect.offset_from_pad and not settings.lstrip):
            backend.add_special_tokens(
                [AddedToken(self.mask_token, lstrip=dialect.offset_from_pad, normalized=False)]
            )
        special = {i for i, t in backend.get_added_tokens_decoder().items() if t.special}
        self.special_ids = np.array(sorted({*special, first, last, pad, unk, mask}), np.int64)
        self._single = self._template(backend.encode("a"), None)
        self._pair = self._template(backend.encode("a", "a"), 1)

    @classmethod
    def from_folder(cls, folder: Path, family: str, rows: int | None = None) -> Self:
        """Read tokenizer.json, else vocab.json and merges.txt, vocab.txt, or sentencepiece's file.

        Raises:
            ModelError: none of them is there, or one is damaged.
        """
        try:
            return cls(load(folder, family), DIALECTS[family], rows)
        except ModelError as error:
            raise ModelError(f"{folder}: {error}") from None

    def lower_cased(self) -> "Tokenizer":
        """This tokenizer with its texts put in lower case first; itself where it does that."""
        copy = tokenizers.Tokenizer.from_str(self.to_json())
        return Tokenizer(copy, self._dialect, self._rows) if put_lower_case(copy) else self

    @property
    def dialect(self) -> Dialect:
        """The family whose special tokens it writes; not always the model's."""
        return self._dialect

    @property
    def vocab_size(self) -> int:
        """Entries, added tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def kind(self) -> str:
        """The algorithm: BPE, WordPiece or Unigram."""
        return type(self._backend.model).__name__

    def to_json(self) -> str:
        """The whole tokenizer as the text of a tokenizer.json."""
        return str(self._backend.to_str())

    # --- strings to ids ---------------------------------------------------------------------

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        special: bool = True,
        limit: int | None = None,
    ) -> list[Tokens | TextError]:
        """Texts, or pairs of texts, to rows with the family's special tokens around them.

        Args:
            texts: the first texts.
            pairs: the second texts, as many.
            special: read `<mask>`, `</s>` and so on as special tokens; False: as plain text.
            limit: the longest row; what is longer is cut, the longer text of a pair first, and
                `cut` counts what was left out.

        A text that cannot be read gets its TextError in its place, and the others are answered.
        """
        firsts = self.contents(texts, special=special)
        seconds = self.contents(pairs, special=special) if pairs is not None else None
        if seconds is not None and len(seconds) != len(firsts):
            raise CallError(f"{len(firsts)} first texts and {len(seconds)} second texts")
        rows: list[Tokens | TextError] = []
        for i, first in enumerate(firsts):
            second = seconds[i] if seconds is not None else None
            if isinstance(first, TextError) or isinstance(second, TextError):
                rows.append(first if isinstance(first, TextError) else second)  # type: ignore[arg-type]
            else:
                rows.append(self.frame(first, second, limit=limit))
        return rows

    def contents(self, texts: Sequence[str], *, special: bool = True) -> list[Tokens | TextError]:
        """Texts to tokens without the family's special tokens; see `encode`."""
        found = self._encodings(texts, special, self._backend.encode_batch)
        return [f if isinstance(f, TextError) else of_encoding(*f) for f in found]

    def ids(self, texts: Sequence[str], *, special: bool = True) -> list[Ids | TextError]:
        """The ids of `contents` alone, for less work."""
        found = self._encodings(texts, special, self._backend.encode_batch_fast)
        return [f if isinstance(f, TextError) else f[1] for f in found]

    def _encodings(
        self, texts: Sequence[str], special: bool, encode: Callable[..., list[Encoding]]
    ) -> list[tuple[Encoding, Ids] | TextError]:
        checked = [_readable(text) for text in texts]
        clean = [text for text in checked if isinstance(text, str)]
        if len(clean) == 1:
            # A batch goes to threads, which one text waits for in vain.
            encodings = iter([self._backend.encode(clean[0], add_special_tokens=False)])
        else:
            encodings = iter(encode(clean, add_special_tokens=False))
        out: list[tuple[Encoding, Ids] | TextError] = []
        for text in checked:
            if isinstance(text, TextError):
                out.append(text)
                continue
            encoding = next(encodings)
            ids = np.array(encoding.ids, np.int64)
            if not special and self._took_special(ids, text):
                encoding = self._plain.encode(text, add_special_tokens=False)
                ids = np.array(encoding.ids, np.int64)
            if self._rows is not None and (ids >= self._rows).any():
                piece = self.pieces(ids[ids >= self._rows][:1])[0]
                out.append(TextError(f"token {show(piece)} is not among the model's {self._rows}"))
                continue
            out.append((encoding, ids))
        return out

    def contents_of_words(self, words: Sequence[str]) -> Tokens:
        """One text given as words; `words` and `spans` of the result speak of these words.

        Byte-level BPE gets the space before each word that it was trained with. A word that has no
        token (an empty string) is simply absent from `words`.
        """
        (tokens,) = self.contents_of_split([words])
        if isinstance(tokens, TextError):
            raise tokens
        return tokens

    def contents_of_split(self, texts: Sequence[Sequence[str]]) -> list[Tokens | TextError]:
        """Texts given as words; see `contents_of_words`."""
        # Words come again and again: each is read once.
        known = dict.fromkeys(word for words in texts for word in words if isinstance(word, str))
        found = dict(zip(known, self._words(list(known)), strict=True))
        out: list[Tokens | TextError] = []
        for words in texts:
            parts: list[Tokens] = []
            for word in words:
                part = found[word] if isinstance(word, str) else _readable(word)
                if not isinstance(part, Tokens):
                    out.append(part)
                    break
                parts.append(part)
            else:
                counts = [len(part) for part in parts]
                joined = join(parts)
                numbers = np.repeat(np.arange(len(parts), dtype=np.int64), counts)
                out.append(replace(joined, words=numbers))
        return out

    def _words(self, words: Sequence[str]) -> list[Tokens | TextError]:
        checked = [_readable(word) for word in words]
        good = [word for word in checked if isinstance(word, str)]
        lead = [" " if self._byte_level and word and not word[0].isspace() else "" for word in good]
        pieces = self.contents([a + b for a, b in zip(lead, good, strict=True)], special=False)
        moved = iter(
            replace(piece, spans=np.maximum(piece.spans - len(space), 0))
            if isinstance(piece, Tokens)
            else piece
            for piece, space in zip(pieces, lead, strict=True)
        )
        return [word if isinstance(word, TextError) else next(moved) for word in checked]

    def frame(
        self, first: Tokens, second: Tokens | None = None, *, limit: int | None = None
    ) -> Tokens:
        """Put the family's special tokens around one text or two, cutting to `limit` tokens."""
        template = self._single if second is None else self._pair
        cut = 0
        if limit is not None:
            room = max(0, limit - template.size)
            length = len(first) + (len(second) if second is not None else 0)
            cut = max(0, length - room)
            if second is None:
                first = first[:room]
            elif cut:
                # The longer one gives way; from equal lengths on, both in turn.
                keep = min(len(first), max(room - len(second), (room + 1) // 2))
                first, second = first[:keep], second[: room - keep]
        parts = [of_specials(template.before), first, of_specials(template.between)]
        if second is not None:
            count = len(second)
            side = np.ones(count, np.int64)
            parts.append(
                Tokens(second.ids, second.spans, second.words, side * template.second_type, side)
            )
        parts.append(of_specials(template.after, template.second_type if second is not None else 0))
        joined = join(parts)
        return Tokens(joined.ids, joined.spans, joined.words, joined.types, joined.sides, cut)

    def frame_ids(self, ids: Ids) -> Ids:
        """`frame` of one text, for the ids alone."""
        before, after = self._single.before, self._single.after
        return np.concatenate([before, ids, after]).astype(np.int64)

    @property
    def frame_size(self) -> int:
        """How many special tokens stand around one text."""
        return self._single.size

    @property
    def frame_before(self) -> int:
        """How many of them stand before it."""
        return len(self._single.before)

    # --- ids to strings ---------------------------------------------------------------------

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Ids to text; special tokens are left out."""
        keep = [int(i) for i in ids if i not in self._special_set]
        return str(self._backend.decode(keep, skip_special_tokens=False))

    def pieces(self, ids: Sequence[int] | Ids) -> tuple[str, ...]:
        """The vocabulary's own spelling of each id (`Ġworld`, `##ing`); `` for an unused id."""
        return tuple(self._backend.id_to_token(int(i)) or "" for i in ids)

    def word(self, ids: Sequence[int] | Ids) -> str:
        """Ids as a person would write the word: no space at either end, no `##`."""
        if len(ids) == 1 and int(ids[0]) in self._special_set:
            return self.pieces(ids)[0]
        text = self.decode(ids).strip()
        return text[2:] if self.kind == "WordPiece" and text[:2] == "##" and text[2:] else text

    def begins(self, size: int, *, after_space: bool) -> npt.NDArray[np.bool_]:
        """Which ids can be the first piece of a word (size,), after a space or not."""
        return self._flags(size, 0 if after_space else 1)

    def continues(self, size: int) -> npt.NDArray[np.bool_]:
        """Which ids can be a later piece of a word (size,)."""
        return self._flags(size, 2)

    def _flags(self, size: int, row: int) -> npt.NDArray[np.bool_]:
        out = np.zeros(size, bool)
        known = self._word_flags[row][:size]
        out[: len(known)] = known
        return out

    @cached_property
    def space_id(self) -> int | None:
        """The piece that is nothing but the space before a word; None where there is none."""
        return self._backend.token_to_id("▁") if self.kind == "Unigram" else None

    @cached_property
    def _word_flags(self) -> npt.NDArray[np.bool_]:
        """Begins after a space, begins without one, continues (3, vocabulary)."""
        vocab = self._backend.get_vocab(with_added_tokens=True)
        out = np.zeros((3, max(vocab.values()) + 1), bool)
        for piece, index in vocab.items():
            if self.kind == "WordPiece":
                later = piece.startswith("##")
                out[:, index] = not later, not later, later
            else:
                # BPE and Unigram put the space into the piece, and each has its sign for it.
                space = piece[:1] == ("▁" if self.kind == "Unigram" else "Ġ")
                sign = piece[1:2] if space else piece[:1]
                inside = _letter(sign) if self.kind == "Unigram" else _byte_inside_word(sign)
                # Unigram writes the space even where a text begins without one.
                bare = space if self.kind == "Unigram" else not space
                out[:, index] = space and inside, bare and inside, not space and inside
        out[:, self.special_ids] = False
        return out

    def word_ids(self, text: str, *, after_space: bool) -> tuple[int, ...]:
        """The ids of a word that stands where a mask stood: after a space, or not.

        Raises:
            TextError: the word has no tokens, or cannot be read.
        """
        lead = " " if after_space and self._byte_level else ""
        (tokens,) = self.contents([lead + text.strip()], special=False)
        if isinstance(tokens, TextError):
            raise tokens
        ids = tuple(int(i) for i in tokens.ids)
        if not ids:
            raise TextError(f"target {show(text)} has no tokens")
        return ids

    # --- inside -----------------------------------------------------------------------------

    @cached_property
    def _special_set(self) -> frozenset[int]:
        return frozenset(int(i) for i in self.special_ids)

    @cached_property
    def _byte_level(self) -> bool:
        return '"ByteLevel"' in json.dumps(json.loads(self.to_json()).get("pre_tokenizer"))

    def _took_special(self, ids: Ids, text: str) -> bool:
        hits = ids[np.isin(ids, self.special_ids)]
        unknown = self._dialect.special_tokens[3]
        return bool((hits != self.unk_id).any() or (len(hits) and unknown in text))

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """A copy to which special tokens are text like any other."""
        state = json.loads(self.to_json())
        if state["model"]["type"] == "Unigram":
            # Unigram's vocabulary lists the special tokens as pieces, with the best score of all:
            # give them a spelling that no text can have.
            special = self._special_set
            for index, entry in enumerate(state["model"]["vocab"]):
                if index in special:
                    entry[0] = f"\ue000{index}\ue000"
        kept = [token for token in state["added_tokens"] if not token["special"]]
        state["added_tokens"] = kept
        copy = tokenizers.Tokenizer.from_str(json.dumps(state))
        for token in kept:
            if copy.token_to_id(token["content"]) != token["id"]:
                raise ModelError(f"added token {show(token['content'])} has an id of its own")
        return copy

    def _template(self, encoding: Encoding, second: int | None) -> _Template:
        sides = [-1 if side is None else side for side in encoding.sequence_ids]
        if second is None:
            if -1 not in sides:
                return _Template((self.first_id,), (), (self.last_id,), 0)
            inside = [i for i, side in enumerate(sides) if side == 0]
            ids = encoding.ids
            return _Template(tuple(ids[: inside[0]]), (), tuple(ids[inside[-1] + 1 :]), 0)
        if -1 not in sides:
            double = self._dialect.offset_from_pad
            between = (self.last_id,) * (2 if double else 1)
            return _Template((self.first_id,), between, (self.last_id,), 0 if double else 1)
        first = [i for i, side in enumerate(sides) if side == 0]
        last = [i for i, side in enumerate(sides) if side == 1]
        ids = encoding.ids
        return _Template(
            tuple(ids[: first[0]]),
            tuple(ids[first[-1] + 1 : last[0]]),
            tuple(ids[last[-1] + 1 :]),
            int(encoding.type_ids[last[0]]),
        )


def _letter(sign: str) -> bool:
    """Whether a character belongs to a word: a letter, a digit, or a mark on one."""
    return sign != "" and unicodedata.category(sign)[0] in "LNM"


def _byte_inside_word(sign: str) -> bool:
    """The same of byte-level BPE's spelling of a byte, which may be part of a longer character.

    A byte above 127 is spelled as a letter of its own; a control character or a space as one of
    U+0100 to U+0121.
    """
    return sign.isalnum() if sign.isascii() else not "\u0100" <= sign <= "\u0121"


def _readable(text: str) -> str | TextError:
    if not isinstance(text, str):
        return TextError(f"a text is {show(text)}; allowed: a string")
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return TextError(
            f"character {error.start} is {text[error.start]!a}, half of a surrogate pair; "
            "not valid Unicode"
        )
    return text
