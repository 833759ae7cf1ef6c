"""Pairs of texts to align by: read, and parted into those learned from and those measured on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from enrobe.data.readers import expand
from enrobe.data.records import Records
from enrobe.errors import CallError, show
from enrobe.sentence_folder import SentenceSettings
from enrobe.tasks.embed import choose_prompt
from enrobe.train.align_recipe import PairsTable

_LANGUAGE = "all"
# What the folder calls the prompt that its texts are to have.
_PROMPT = "aligned"


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts and the language of each."""

    texts: list[tuple[str, str]]
    # the model's, the target's
    languages: list[str]

    def take(self, rows: Sequence[int]) -> "Pairs":
        """Some of them."""
        return Pairs([self.texts[i] for i in rows], [self.languages[i] for i in rows])


def read_pairs(table: PairsTable) -> Pairs:
    """The pairs of files; rows without both texts are left out.

    Raises:
        CallError: no such file or column, or no pair.
    """
    found = Pairs([], [])
    counts: dict[str, int] = {}
    names = [*table.text, *([table.language] if table.language else [])]
    for path in expand(table.files):
        for record in Records(path):
            if record.error is not None:
                continue
            for name in names:
                if name not in record.values:
                    has = ", ".join(list(record.values)[:20])
                    raise CallError(f"{path}: no column {show(name)}; it has: {has}")
            values = [record.values[name] for name in names]
            if not all(isinstance(value, str) and value.strip() for value in values):
                continue
            language = values[2] if table.language else _LANGUAGE
            counts[language] = counts.get(language, 0) + 1
            if table.most is None or counts[language] <= table.most:
                found.texts.append((values[0], values[1]))
                found.languages.append(language)
    if not found.texts:
        raise CallError(f"{', '.join(map(str, table.files))}: no pair of texts")
    return found


def split(pairs: Pairs, share: float, seed: int) -> tuple[Pairs, Pairs]:
    """Pairs to learn from and pairs to measure on, with no text in both.

    A pair is held out by a hash of the text that has fewer different ones (of an English sentence
    and its hundred translations, the English one); what is left is learned from, but for pairs
    whose other text is held out.

    Raises:
        CallError: one of the two would be empty.
    """
    sides = [len({pair[side] for pair in pairs.texts}) for side in (0, 1)]
    pivot = 0 if sides[0] <= sides[1] else 1
    held = [_draw(pair[pivot], seed) < share for pair in pairs.texts]
    texts = {pair[1 - pivot] for pair, out in zip(pairs.texts, held, strict=True) if out}
    heldout = [row for row, out in enumerate(held) if out]
    learned = [
        row
        for row, (pair, out) in enumerate(zip(pairs.texts, held, strict=True))
        if not out and pair[1 - pivot] not in texts
    ]
    if len(learned) < 2 or not heldout:
        raise CallError(
            f"heldout = {share} of {len(held)} pairs leaves {len(learned)} to learn from and "
            f"{len(heldout)} to measure on; fix: more pairs"
        )
    return pairs.take(learned), pairs.take(heldout)


def _draw(text: str, seed: int) -> float:
    """A number from 0 to 1 that follows from the text, case and spaces aside."""
    plain = " ".join(text.casefold().split())
    digest = blake2b(f"{seed}\0{plain}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def with_prompt(settings: SentenceSettings, prompt: str | None) -> SentenceSettings:
    """The settings with a prompt, named or given, before every text; None: as they are."""
    if prompt is None:
        return settings
    text = choose_prompt(prompt, settings)
    return replace(settings, default_prompt=text, prompts={**settings.prompts, _PROMPT: text})
