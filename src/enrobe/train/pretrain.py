"""Masked-LM pretraining: text files and a recipe to a checkpoint.

Legend: T tokens, M masked positions.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from enrobe import checkpoint, hub
from enrobe.atomic import check_new, replace_folder
from enrobe.config import EncoderConfig, HeadConfig
from enrobe.data.corpus import Corpus, SourceInfo, build
from enrobe.data.languages import in_shares, language_files, smoothed
from enrobe.data.masking import Masker, MaskingConfig
from enrobe.data.packing import Documents, FullSentences, Mixture, permute
from enrobe.data.readers import expand
from enrobe.data.vocabulary import read_texts, write_vocabulary
from enrobe.errors import CallError, MissingExtraError
from enrobe.nn.encoder import sinusoidal_positions
from enrobe.nn.heads import Model
from enrobe.text.ragged import Ids, Ragged, row_offsets
from enrobe.text.tokenizer import Tokenizer
from enrobe.train.curves import draw
from enrobe.train.group import Group
from enrobe.train.log import LOG
from enrobe.train.loop import Run, fit
from enrobe.train.losses import masked_lm_loss
from enrobe.train.recipe import PretrainRecipe, ShapeTable, SourceTable, as_values
from enrobe.train.work import (
    Evaluation,
    Micro,
    masked_lm_flops,
    micro_batches,
    model_arrays,
    named,
    say,
)

# Held-out data is masked as BERT was trained, whatever a run trains with: figures compare.
_HELDOUT = MaskingConfig(rate=0.15)
_HELDOUT_SEED = 20_190_726
# Rows that are masked together; more at once are slower (their sort leaves the cache).
_MASKED_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """What a run made.

    `before` and `after` are {held-out set: {"loss", "perplexity", "accuracy"}}: mean cross-entropy
    in nats at masked positions, e to its power, and how often the likeliest token is right.
    """

    model: Path
    # a model folder; where a signal stopped the run, that of its last checkpoint
    step: int
    finished: bool
    before: Mapping[str, Mapping[str, float]]
    # empty where the run was resumed
    after: Mapping[str, Mapping[str, float]]
    # empty where it was stopped
    tokens: int
    # gone through in this call
    seconds: float
    # of training in this call

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return {**asdict(self), "model": str(self.model)}


def run(recipe: PretrainRecipe, *, resume: bool) -> PretrainResult:
    """Pretrain, or go on pretraining; see `enrobe.pretrain`."""
    folder = recipe.output
    values = as_values(recipe)
    # Where things lie says nothing of the run.
    del values["output"]
    if not resume:
        check_new(folder)
    group = Group.join(recipe.train.device)
    try:
        if group.first:
            folder.mkdir(parents=True, exist_ok=True)
        group.wait()
        recipe = with_languages(recipe)
        model, tokenizer, start = _model(recipe, group)
        rows, heldout = corpus_rows(recipe, tokenizer, group)
        values["data"] = data_hashes(recipe, tokenizer)
        model.gradient_checkpointing = recipe.train.gradient_checkpointing
        model.to(group.device)
        work = MaskedLM(model, tokenizer, start, rows, heldout, recipe, group)
        ended = fit(
            work,
            recipe.train,
            folder=folder,
            recipe=values,
            seed=recipe.seed,
            group=group,
            resume=resume,
        )
        return _result(folder, work, ended, group)
    except OSError as error:
        raise named(error, folder) from None
    finally:
        group.leave()


def with_languages(recipe: PretrainRecipe) -> PretrainRecipe:
    """The recipe with a source for every language of its folder."""
    if recipe.corpus.languages is None:
        return recipe
    found = language_files(recipe.corpus.languages)
    sources = {name: SourceTable(files=tuple(files)) for name, files in found.items()}
    return replace(recipe, corpus=replace(recipe.corpus, sources=sources, languages=None))


def _result(folder: Path, work: "MaskedLM", ended: Run, group: Group) -> PretrainResult:
    target = folder / "model"
    if ended.finished and group.first:
        # A run that went on for more steps has an older one there.
        replace_folder(target, work.write)
        # A picture is worth no failure at the end of a long run.
        with suppress(MissingExtraError, OSError):
            draw([folder / LOG], folder / "curve.png")
    if not ended.finished:
        target = folder / "checkpoints" / f"step-{ended.step:09d}" / "model"
    return PretrainResult(
        model=target,
        step=ended.step,
        finished=ended.finished,
        before=ended.first.results if ended.first is not None else {},
        after=ended.last.results if ended.finished and ended.last is not None else {},
        tokens=ended.tokens,
        seconds=ended.seconds,
    )


# --- the model --------------------------------------------------------------------------------


def _model(recipe: PretrainRecipe, group: Group) -> tuple[Model, Tokenizer, Path]:
    """The model to begin with, its tokenizer, and the folder that has the tokenizer's files."""
    torch.manual_seed(recipe.seed)
    if isinstance(recipe.model, ShapeTable):
        folder = _tokenizer(recipe, group)
        tokenizer = Tokenizer.from_folder(folder, "roberta")
        if recipe.corpus.vocabulary not in (None, tokenizer.vocab_size):
            raise CallError(
                f"corpus.vocabulary is {recipe.corpus.vocabulary}; {folder} has "
                f"{tokenizer.vocab_size} entries; fix: name another corpus.folder, or delete it"
            )
        config = recipe.model.config(max(tokenizer.vocab_size, *tokenizer.special_ids + 1))
        model = Model(config, {"mlm": HeadConfig(kind="mlm")})
        if recipe.model.positions == "sinusoidal":
            sinusoidal_positions(model, config)
        return model, tokenizer, folder
    read = checkpoint.read(hub.resolve(recipe.model))
    tokenizer = Tokenizer.from_folder(read.folder, read.config.family, read.config.vocab_size)
    if recipe.corpus.length > read.config.max_tokens:
        raise CallError(
            f"corpus.length is {recipe.corpus.length}; {recipe.model} has "
            f"{read.config.max_tokens} positions"
        )
    heads = {name: head for name, head in read.heads.items() if head.kind == "mlm"}
    model = Model(
        read.config,
        heads or {"mlm": HeadConfig(kind="mlm")},
        pooler="pooler.weight" in read.tensors,
    )
    # Without a masked-LM head in the checkpoint, the new one stays as it was drawn.
    given = model.state_dict().keys() & read.tensors.keys()
    model.load_state_dict({name: torch.tensor(read.tensors[name]) for name in given}, strict=False)
    return model, tokenizer, read.folder


def _tokenizer(recipe: PretrainRecipe, group: Group) -> Path:
    if recipe.corpus.tokenizer is not None:
        return recipe.corpus.tokenizer
    folder = (recipe.corpus.folder or recipe.output) / "tokenizer"
    assert recipe.corpus.vocabulary is not None and isinstance(recipe.model, ShapeTable)
    if group.first and not (folder / "tokenizer.json").is_file():
        tables = recipe.corpus.sources.values()
        files = [expand(table.files) for table in tables]
        if recipe.corpus.alpha:
            texts = in_shares(
                [partial(read_texts, some) for some in files],
                [table.weight for table in tables],
                recipe.corpus.alpha,
            )
        else:
            texts = read_texts([path for some in files for path in some])
        length = recipe.model.max_positions - 2
        write_vocabulary(folder, texts, recipe.corpus.vocabulary, length)
    group.wait()
    return folder


# --- the data ---------------------------------------------------------------------------------

Rows = FullSentences | Documents


def corpus_rows(
    recipe: PretrainRecipe, tokenizer: Tokenizer, group: Group
) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """The rows of every source, and of every held-out set."""
    table = recipe.corpus

    def rows(name: str, files: Sequence[Path]) -> Rows:
        place = _place(recipe, name)
        if group.first:
            corpus = build(place, expand(files), tokenizer, workers=table.workers, done=_report)
        group.wait()
        if not group.first:
            corpus = Corpus(place, tokenizer)
        make = FullSentences if table.packing == "full" else Documents
        return make(corpus, tokenizer, length=table.length)

    sources = {name: rows(name, source.files) for name, source in table.sources.items()}
    heldout = {name: rows(_heldout(name), table.heldout[name].files) for name in table.heldout}
    return sources, heldout


def data_hashes(recipe: PretrainRecipe, tokenizer: Tokenizer) -> dict[str, list[str]]:
    """Hashes of the files, for a run that goes on with what it began with."""
    table = recipe.corpus
    return {
        name: [info.sha256 for info in Corpus(_place(recipe, name), tokenizer).sources]
        for name in (*table.sources, *map(_heldout, table.heldout))
    }


def _place(recipe: PretrainRecipe, name: str) -> Path:
    return (recipe.corpus.folder or recipe.output / "corpus") / name


def _heldout(name: str) -> str:
    return f"heldout-{name}"


def _report(info: SourceInfo) -> None:
    if info.unreadable:
        say(f"{info.name}: {info.unreadable} documents left out ({info.reason})")


# --- the work ---------------------------------------------------------------------------------


class MaskedLM:
    """Masked-LM training as the loop takes it."""

    objectives = ("masked",)

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        tokenizer_folder: Path,
        sources: Mapping[str, Rows],
        heldout: Mapping[str, Rows],
        recipe: PretrainRecipe,
        group: Group,
    ) -> None:
        """Put a model and its data together; CallError where the rows cannot be shared out."""
        self.model = model
        self._config: EncoderConfig = model.config
        (self._head,) = model.head_configs
        self._tokenizer_folder = tokenizer_folder
        self._sources = list(sources.values())
        sizes = [len(rows) for rows in self._sources]
        weights = [recipe.corpus.sources[name].weight for name in sources]
        shares = smoothed(sizes, weights, recipe.corpus.alpha)
        self._mixture = Mixture(sizes, shares, seed=recipe.seed)
        self._masker = Masker(recipe.masking, tokenizer, seed=recipe.seed)
        # Rows are numbered through all sources, so that no two draw the same masks.
        self._first = np.cumsum([0, *(len(rows) for rows in self._sources)])
        self._train, self._group = recipe.train, group
        self._share, odd = divmod(recipe.train.batch_rows, group.size)
        if odd:
            raise CallError(
                f"batch_rows {recipe.train.batch_rows} over {group.size} processes; "
                "allowed: a multiple of them"
            )
        masker = Masker(_HELDOUT, tokenizer, seed=_HELDOUT_SEED)
        self._heldout = {
            name: self._measured(rows, recipe.corpus.heldout[name].rows, masker)
            for name, rows in heldout.items()
        }

    def batch(self, step: int) -> list[Micro]:
        """See `Work.batch`."""
        start = step * self._train.batch_rows + self._group.rank * self._share
        places = [self._mixture.at(start + i) for i in range(self._share)]
        rows = [self._sources[place.source].row(place.row) for place in places]
        numbers = [int(self._first[place.source]) + place.row for place in places]
        epochs = [place.epoch for place in places]
        return self._micros(rows, numbers, epochs, self._masker, step / self._train.steps)

    def _micros(
        self,
        rows: Sequence[Ids],
        numbers: Sequence[int],
        epochs: Sequence[int],
        masker: Masker,
        progress: float,
    ) -> list[Micro]:
        out = []
        lengths = [len(row) for row in rows]
        for group in micro_batches(lengths, self._train.micro_tokens):
            ids, positions, targets, done = [], [], [], 0
            for first in range(0, len(group), _MASKED_ROWS):
                some = group[first : first + _MASKED_ROWS]
                masked = masker(
                    Ragged.from_rows([rows[i] for i in some]),
                    [numbers[i] for i in some],
                    [epochs[i] for i in some],
                    progress=progress,
                )
                ids.append(masked.ids)
                positions.append(masked.positions + done)
                targets.append(masked.targets)
                done += len(masked.ids)
            offsets = row_offsets([lengths[i] for i in group])
            count = sum(map(len, targets))
            out.append(
                Micro(
                    batch=Ragged(np.concatenate(ids), offsets, np.zeros(done, np.int64)),
                    counts={"masked": count},
                    flops=3 * masked_lm_flops(self._config, np.diff(offsets), count),
                    arrays={
                        "positions": np.concatenate(positions),
                        "targets": np.concatenate(targets),
                    },
                )
            )
        return out

    def _measured(self, rows: Rows, most: int, masker: Masker) -> list[Micro]:
        count = min(most, len(rows))
        picked = [permute(i, len(rows), _HELDOUT_SEED) for i in range(count)]
        mine = picked[self._group.rank :: self._group.size]
        return self._micros([rows.row(i) for i in mine], mine, [0] * len(mine), masker, 0.0)

    def _sums(self, micro: Micro) -> tuple[Tensor, Tensor]:
        device = self._group.device
        return masked_lm_loss(
            self.model,
            self._head,
            torch.from_numpy(micro.batch.ids).to(device),
            micro.batch.offsets,
            torch.from_numpy(micro.batch.types).to(device),
            micro.arrays["positions"],
            torch.from_numpy(micro.arrays["targets"]).to(device),
        )

    def loss(
        self, micro: Micro, totals: Mapping[str, float]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """See `Work.loss`."""
        loss, right = self._sums(micro)
        count = max(1.0, totals["masked"])
        return loss / count, {"loss": loss / count, "accuracy": right / count}

    def evaluate(self) -> Evaluation:
        """See `Work.evaluate`; the score is the first set's loss, turned round."""
        results = {}
        for name, micros in self._heldout.items():
            sums = np.zeros(3)
            for micro in micros:
                loss, right = self._sums(micro)
                sums += [float(loss), float(right), micro.counts["masked"]]
            loss_sum, right_sum, count = self._group.sum(sums.tolist())
            if not count:
                raise CallError(f"held-out {name}: no word in it is known to the tokenizer")
            mean = loss_sum / count
            # A loss beyond this is no number that a perplexity is worth.
            perplexity = math.exp(min(mean, 700.0))
            results[name] = {"loss": mean, "perplexity": perplexity, "accuracy": right_sum / count}
        first = next(iter(results.values()), None)
        return Evaluation(results=results, score=None if first is None else -first["loss"])

    def write(self, folder: Path) -> None:
        """See `Work.write`."""
        checkpoint.write(
            folder,
            config=self._config,
            heads=self.model.head_configs,
            tensors=model_arrays(self.model),
            tokenizer_folder=self._tokenizer_folder,
        )

    def read(self, folder: Path) -> None:
        """See `Work.read`."""
        read = checkpoint.read(folder)
        (stored,) = read.heads
        values = {
            name: torch.tensor(
                read.tensors[name.replace(f"heads.{self._head}.", f"heads.{stored}.")]
            )
            for name in self.model.state_dict()
        }
        self.model.load_state_dict(values)
