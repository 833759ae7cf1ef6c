"""Training a model to place a sentence and its translation where a teacher places the sentence.

Reimers and Gurevych 2020, "Making monolingual sentence embeddings multilingual using knowledge
distillation": for pairs (s, t) the student's vectors of s and of t both come near the teacher's of
s. Here s is what the target reads and t what the model reads; the model learns from both.

Legend: N texts, D numbers of a vector.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from enrobe import checkpoint, hub
from enrobe.checkpoint import Checkpoint
from enrobe.engines.base import Array
from enrobe.errors import CallError, TextError
from enrobe.nn.heads import Model
from enrobe.sentence_folder import SentenceSettings, read_sentence_settings
from enrobe.tasks.bulk_inputs import model_sha256
from enrobe.tasks.embed import choose_prompt
from enrobe.tasks.model import load
from enrobe.tasks.pooling import width_after
from enrobe.text.tokenizer import Tokenizer
from enrobe.train.align_pairs import Pairs, with_prompt
from enrobe.train.align_recipe import AlignRecipe
from enrobe.train.distil_recipe import DistilTexts, TextsTable, VectorLosses
from enrobe.train.distil_vectors import VectorDistilling
from enrobe.train.group import Group
from enrobe.train.hidden_teaching import HiddenTeaching
from enrobe.train.loop import Run, fit
from enrobe.train.recipe import as_values
from enrobe.train.vectors import SentenceVectors, TextRow, teacher_vectors, text_rows

Data = tuple[list[TextRow], Array]
# Rows of texts, and where each is to be placed (N, D).


def train(recipe: AlignRecipe, learned: Pairs, heldout: Pairs, *, resume: bool) -> Run:
    """Train, or go on training, in the recipe's output.

    Raises:
        CallError: a text that cannot be read, more than one process, another run in the output.
    """
    assert recipe.train is not None
    group = Group.join(recipe.train.device)
    try:
        if group.size > 1:
            raise CallError(f"{group.size} processes; an alignment is trained in one")
        recipe.output.mkdir(parents=True, exist_ok=True)
        read, there = checkpoint.read(hub.resolve(recipe.model)), hub.resolve(recipe.target)
        settings = _settings(recipe, read.folder, read_sentence_settings(there))
        student = _student(read, recipe.seed)
        width = checkpoint.read(there).config.hidden_size
        pooled = len(settings.pool) * width
        width_after(pooled, settings)
        own = read.config.hidden_size
        vectors = SentenceVectors(settings, hidden=own, projected=None if own == width else pooled)
        losses = VectorLosses(vector_distance="mse")
        hidden = HiddenTeaching(student, student, losses)
        student.to(group.device)
        vectors.to(group.device)
        sha256 = model_sha256(there)
        texts = [text for pairs in (learned, heldout) for _, text in pairs.texts]
        placed = _placed(recipe, there, sha256, list(dict.fromkeys(texts)))
        both = [(a, b) for a, b in learned.texts] + [(b, b) for _, b in learned.texts]
        work = VectorDistilling(
            student,
            vectors,
            hidden,
            read.folder,
            _data(read, settings, list(dict.fromkeys(both)), placed),
            _data(read, settings, heldout.texts, placed),
            DistilTexts(
                output=recipe.output,
                teacher=recipe.target,
                texts=TextsTable(files=recipe.pairs.files),
                train=recipe.train,
                losses=losses,
                seed=recipe.seed,
            ),
        )
        values = as_values(recipe)
        for name in ("output", "model", "target"):
            del values[name]
        values["data"] = {"target": sha256, "model": model_sha256(read.folder)}
        return fit(
            work,
            recipe.train,
            folder=recipe.output,
            recipe=values,
            seed=recipe.seed,
            group=group,
            resume=resume,
        )
    finally:
        group.leave()


def _settings(recipe: AlignRecipe, folder: Path, target: SentenceSettings) -> SentenceSettings:
    """The target's way to a vector, with the model's own texts: its prompt, length and case."""
    own = read_sentence_settings(folder)
    own = with_prompt(own, recipe.prompt)
    return replace(
        target,
        prompts=own.prompts,
        default_prompt=own.default_prompt,
        max_tokens=own.max_tokens,
        lower_case=own.lower_case,
    )


def _student(read: Checkpoint, seed: int) -> Model:
    torch.manual_seed(seed)
    model = Model(read.config, {})
    names = model.state_dict().keys() & read.tensors.keys()
    values = {name: torch.tensor(read.tensors[name]) for name in names}
    model.load_state_dict(values, strict=False)
    return model


def _placed(
    recipe: AlignRecipe, there: Path, sha256: str, texts: Sequence[str]
) -> dict[str, Array]:
    """Where the target places each of its texts; kept in the output, for a run that goes on."""
    target = load(there)
    settings = target.sentence
    if recipe.target_prompt is not None:
        prompt = choose_prompt(recipe.target_prompt, settings)
        settings = replace(settings, default_prompt=prompt)
    folder = recipe.output / "target"
    answers = teacher_vectors(
        target.engine,
        target.tokenizer,
        settings,
        f"{sha256} {settings.default_prompt}",
        texts,
        folder,
    )
    return {text: answers[i] for i, text in enumerate(texts)}


def _data(
    read: Checkpoint,
    settings: SentenceSettings,
    pairs: Sequence[tuple[str, str]],
    placed: dict[str, Array],
) -> Data:
    tokenizer = Tokenizer.from_folder(read.folder, read.config.family, read.config.vocab_size)
    rows = []
    for row in text_rows(tokenizer, read.config, settings, [text for text, _ in pairs]):
        if isinstance(row, TextError):
            raise CallError(f"a text cannot be read: {row}")
        rows.append(row)
    return rows, np.stack([placed[text] for _, text in pairs])
