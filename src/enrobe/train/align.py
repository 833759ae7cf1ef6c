"""Two encoders' vectors into one space: by a rotation in closed form, or by training one of them.

Legend: N pairs, K and D numbers of the model's and the target's vectors.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from enrobe import checkpoint, hub
from enrobe.atomic import check_new, new_folder, replace_folder
from enrobe.engines.base import Array
from enrobe.errors import CallError, show
from enrobe.evaluate.alignment import LanguageAlignment, mean_alignment, score_alignment
from enrobe.evaluate.similarity import Progress
from enrobe.sentence_folder import (
    Dense,
    SentenceSettings,
    read_sentence_settings,
    write_sentence_settings,
)
from enrobe.tasks.embed import EmbedOptions
from enrobe.tasks.model import Model, load
from enrobe.tasks.pooling import normalize
from enrobe.train.align_pairs import Pairs, read_pairs, split, with_prompt
from enrobe.train.align_recipe import AlignRecipe
from enrobe.train.align_training import train
from enrobe.train.hidden_teaching import PROJECTIONS
from enrobe.train.procrustes import Rotation, procrustes
from enrobe.train.state import BEST, LATEST, Checkpoints, copy_model

_CHUNK = 2048


@dataclass(frozen=True, kw_only=True)
class AlignResult:
    """What an alignment made."""

    model: Path
    # a sentence-transformers folder; its vectors lie in the target's space
    method: str
    # "rotation" or "training"
    pairs: int
    # learned from
    heldout: int
    # measured on
    languages: Mapping[str, LanguageAlignment]
    # empty where a signal stopped the training
    finished: bool = True

    @property
    def mean(self) -> LanguageAlignment:
        """Over languages, each counting once."""
        return mean_alignment(self.languages)

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return {
            **{name: getattr(self, name) for name in ("method", "pairs", "heldout", "finished")},
            "model": str(self.model),
            "mean": self.mean.to_dict() if self.languages else None,
            "languages": {name: one.to_dict() for name, one in self.languages.items()},
        }


def run(
    recipe: AlignRecipe, *, resume: bool = False, progress: Progress | None = None
) -> AlignResult:
    """Align, and measure what it brought; see `enrobe.align`."""
    if not resume:
        check_new(recipe.output)
    elif recipe.train is None:
        raise CallError("a rotation is found at once; fix: leave out --resume, or add [train]")
    learned, heldout = split(read_pairs(recipe.pairs), recipe.pairs.heldout, recipe.seed)
    if recipe.train is None:
        return _rotate(recipe, learned, heldout, progress)
    return _learn(recipe, learned, heldout, resume, progress)


def _rotate(
    recipe: AlignRecipe, learned: Pairs, heldout: Pairs, progress: Progress | None
) -> AlignResult:
    folder = hub.resolve(recipe.model)
    settings = read_sentence_settings(folder)
    if settings.truncate_dim is not None:
        raise CallError(f"{recipe.model}: its folder cuts vectors (truncate_dim); fix: remove that")
    both = [*learned.texts, *heldout.texts]
    sides = _Halves(progress, 2)
    model_NK = embed_all(load(folder), [pair[0] for pair in both], recipe.prompt, sides)
    target_ND = _target(recipe, both, sides)
    count = len(learned.texts)
    rotation = procrustes(model_NK[:count], target_ND[:count])
    held_NK = model_NK[count:]
    result = _result(
        recipe,
        "rotation",
        learned,
        heldout,
        held_NK,
        rotation(normalize(held_NK)),
        target_ND[count:],
    )
    with new_folder(recipe.output) as work:
        _write_model(work / "model", folder, moved(settings, rotation, recipe.prompt))
        write_report(result, work)
    return result


def _learn(
    recipe: AlignRecipe, learned: Pairs, heldout: Pairs, resume: bool, progress: Progress | None
) -> AlignResult:
    ended = train(recipe, learned, heldout, resume=resume)
    checkpoints = Checkpoints(recipe.output / "checkpoints", keep=1)
    best = checkpoints.named(BEST) or checkpoints.named(LATEST)
    assert best is not None
    result = AlignResult(
        model=best / "model",
        method="training",
        pairs=len(learned.texts),
        heldout=len(heldout.texts),
        languages={},
        finished=ended.finished,
    )
    if not ended.finished:
        return result
    texts = [pair[0] for pair in heldout.texts]
    parts = _Halves(progress, 3)
    before = embed_all(load(hub.resolve(recipe.model)), texts, recipe.prompt, parts)
    after = embed_all(load(best / "model"), texts, None, parts)
    target = _target(recipe, heldout.texts, parts)
    # A run that went on has an older one there.
    replace_folder(
        recipe.output / "model", lambda place: copy_model(best / "model", place, (PROJECTIONS,))
    )
    result = _result(recipe, "training", learned, heldout, before, after, target)
    write_report(result, recipe.output)
    return result


def _target(recipe: AlignRecipe, pairs: Sequence[tuple[str, str]], progress: Progress) -> Array:
    model = load(hub.resolve(recipe.target))
    return embed_all(model, [pair[1] for pair in pairs], recipe.target_prompt, progress)


def _result(
    recipe: AlignRecipe,
    method: str,
    learned: Pairs,
    heldout: Pairs,
    before_NK: Array,
    after_ND: Array,
    target_ND: Array,
) -> AlignResult:
    return AlignResult(
        model=recipe.output / "model",
        method=method,
        pairs=len(learned.texts),
        heldout=len(heldout.texts),
        languages=score_alignment(heldout.texts, heldout.languages, before_NK, after_ND, target_ND),
    )


class _Halves:
    """Progress over several models, one after the other."""

    def __init__(self, progress: Progress | None, parts: int) -> None:
        self._progress, self._parts, self._done = progress, parts, 0

    def __call__(self, done: int, tokens: int, share: float | None) -> None:
        if self._progress is not None:
            self._progress(done, tokens, (self._done + (share or 0.0)) / self._parts)
        self._done += share == 1.0


def moved(settings: SentenceSettings, rotation: Rotation, prompt: str | None) -> SentenceSettings:
    """A folder's settings, with the rotation behind what it does with vectors already."""
    steps = settings.steps
    if not steps or steps[-1] != "normalize":
        steps = (*steps, "normalize")
    dense = Dense(weight=rotation.weight, bias=rotation.bias, activation="Identity")
    return replace(with_prompt(settings, prompt), steps=(*steps, dense, "normalize"))


def _write_model(target: Path, folder: Path, settings: SentenceSettings) -> None:
    read = checkpoint.read(folder)
    checkpoint.write(
        target,
        config=read.config,
        heads=read.heads,
        tensors=read.tensors,
        tokenizer_folder=read.folder,
    )
    write_sentence_settings(target, settings, width=read.config.hidden_size)


def write_report(result: AlignResult, folder: Path) -> None:
    """align.json and align.md."""
    values = json.dumps(result.to_dict(), indent=2, allow_nan=False)
    (folder / "align.json").write_text(values + "\n", "utf-8")
    head, *rows = table(result)
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    (folder / "align.md").write_text("\n".join(lines) + "\n", "utf-8")


def table(result: AlignResult) -> list[list[str]]:
    """A header and a row a language, the mean first: accuracy there and back, before and after."""
    rows = [["language", "pairs", "before", "after", "with CSLS", "reciprocal rank"]]
    named = {"mean": result.mean, **result.languages} if len(result.languages) > 1 else {}
    for name, one in (named or result.languages).items():
        shown = [name, f"{one.pairs:,}"]
        for part in (one.before, one.after, one.csls):
            there = (part.accuracy_forward, part.accuracy_backward) if part else ()
            shown.append(" / ".join(f"{value:.3f}" for value in there) or "–")
        ranks = (one.after.reciprocal_rank_forward, one.after.reciprocal_rank_backward)
        rows.append([*shown, " / ".join(f"{value:.3f}" for value in ranks)])
    return rows


def embed_all(model: Model, texts: Sequence[str], prompt: str | None, progress: Progress) -> Array:
    """The vectors (N, D) of texts, each computed once."""
    known = list(dict.fromkeys(texts))
    blocks = []
    for start in range(0, len(known), _CHUNK):
        some = known[start : start + _CHUNK]
        vectors, failed = model.try_embed(some, EmbedOptions(prompt=prompt))
        for place, error in failed.items():
            raise CallError(f"text {show(some[place])}: {error}")
        blocks.append(vectors)
        progress(start + len(some), 0, (start + len(some)) / len(known))
    places = {text: place for place, text in enumerate(known)}
    vectors_ND: Array = np.concatenate(blocks)[[places[text] for text in texts]]
    return vectors_ND
