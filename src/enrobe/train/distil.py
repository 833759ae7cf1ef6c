"""Distilling: a teacher and a recipe to a smaller student, and what it has kept.

The three kinds of data differ in what is asked of the teacher; the rest is here.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from enrobe import checkpoint, hub
from enrobe.atomic import check_new, replace_folder
from enrobe.checkpoint import Checkpoint
from enrobe.config import HeadConfig
from enrobe.data.readers import expand
from enrobe.data.splits import TaskData
from enrobe.engines.torch import TorchEngine
from enrobe.errors import CallError
from enrobe.nn.encoder import Encoder
from enrobe.nn.heads import Model
from enrobe.sentence_folder import read_sentence_settings
from enrobe.tasks.bulk_inputs import model_sha256
from enrobe.tasks.pooling import width_after
from enrobe.text.ragged import Ids
from enrobe.text.tokenizer import Tokenizer
from enrobe.train.augment import AugmentTable, as_answered, other_words
from enrobe.train.cosines import Cosines
from enrobe.train.distil_heads import HeadDistilling, check_heads
from enrobe.train.distil_masked import MaskedDistilling
from enrobe.train.distil_recipe import DistilCorpus, DistilHeads, DistilRecipe, DistilTexts
from enrobe.train.distil_report import (
    DistilResult,
    Scores,
    Side,
    kept_shares,
    parameters,
    speeds,
    write_report,
)
from enrobe.train.distil_vectors import VectorDistilling, read_texts, readable
from enrobe.train.finetune_data import Plan, fingerprint, load_tasks
from enrobe.train.finetune_data import groups as task_groups
from enrobe.train.finetune_model import lr_scales, new_model
from enrobe.train.finetune_recipe import head_of
from enrobe.train.finetune_work import HeadTraining
from enrobe.train.group import Group
from enrobe.train.hidden_teaching import PROJECTIONS, HiddenTeaching
from enrobe.train.log import LOG
from enrobe.train.loop import Run, TrainConfig, fit
from enrobe.train.pretrain import MaskedLM, corpus_rows, data_hashes, with_languages
from enrobe.train.recipe import as_values
from enrobe.train.state import BEST, LATEST, Checkpoints, copy_model, load_state
from enrobe.train.student import student_of
from enrobe.train.supervised import TrainRow, unlabelled
from enrobe.train.teacher_answers import Answers, head_answers
from enrobe.train.vectors import SentenceVectors, TextRow, teacher_vectors, text_rows
from enrobe.train.word_rows import train_used_words
from enrobe.train.work import Work, named, say

# Keys of a table of data that name files; the loop knows those of a corpus.
_FILES = {"files", "heldout", "train", "dev", "test"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A kind of distilling, ready to run."""

    work: Work
    config: TrainConfig
    lr_scales: Mapping[str, float]
    data: Mapping[str, Any]
    # hashes of the files that are learned from
    rows: list[Ids]
    # to measure the speed on
    scores: Callable[[Scores], Scores]
    # the teacher's, of what the student's are given
    teacher_seconds: float
    # of the answers that were computed
    before: Callable[[int], object] | None = None
    cosines: Cosines | None = None
    # see `fit`


def run(recipe: DistilRecipe, *, resume: bool) -> DistilResult:
    """Distil, or go on; see `enrobe.distill`."""
    assert isinstance(recipe, DistilHeads | DistilCorpus | DistilTexts)
    folder = recipe.output
    if not resume:
        check_new(folder)
    group = Group.join(recipe.train.device)
    try:
        if group.size > 1 and not isinstance(recipe, DistilCorpus):
            raise CallError(f"{group.size} processes; this kind of distilling runs in one")
        read = checkpoint.read(hub.resolve(recipe.teacher))
        if group.first:
            folder.mkdir(parents=True, exist_ok=True)
        group.wait()
        teacher = Teacher(read, group)
        job = _JOBS[type(recipe)](recipe, teacher)
        if isinstance(job.work.model, Encoder):
            job.work.model.gradient_checkpointing = recipe.train.gradient_checkpointing
        values = as_values(recipe)
        # Where things lie says nothing of the run; what they hold is known by its hashes.
        for name in ("output", "cache", "teacher"):
            del values[name]
        tables = [values.get(name, {}) for name in ("texts", "augment")]
        for table in (*tables, *values.get("tasks", {}).values()):
            for name in _FILES & table.keys():
                del table[name]
        values["data"] = {**job.data, "teacher": teacher.sha256}
        ended = fit(
            job.work,
            job.config,
            folder=folder,
            recipe=values,
            seed=recipe.seed,
            group=group,
            resume=resume,
            lr_scales=job.lr_scales,
            measure_first=False,
            before=job.before,
            cosines=job.cosines,
        )
        return _result(folder, teacher, job, ended)
    except OSError as error:
        raise named(error, folder) from None
    finally:
        group.leave()


class Teacher:
    """The teacher's folder, and the model that is asked."""

    def __init__(self, read: Checkpoint, group: Group) -> None:
        """Put it where training runs; it is never moved."""
        self.read, self.group = read, group
        model = Model.from_checkpoint(read).eval().requires_grad_(False)
        self.model = model.to(group.device)
        self.engine = TorchEngine.around(self.model)
        self.sha256 = model_sha256(read.folder)
        self.tokenizer = Tokenizer.from_folder(
            read.folder, read.config.family, read.config.vocab_size
        )

    def reporter(self, what: str) -> Callable[[int, int], None]:
        """Says how far its answers are, now and then."""
        last = time.perf_counter()

        def report(done: int, rows: int) -> None:
            nonlocal last
            if not done or time.perf_counter() - last > 30:
                last = time.perf_counter()
                say(f"the teacher's answers to {what}: {done:,} of {rows:,} rows are there")

        return report


def _result(folder: Path, teacher: Teacher, job: Job, ended: Run) -> DistilResult:
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    best = checkpoints.named(BEST) or checkpoints.named(LATEST)
    assert best is not None
    step = load_state(best)[0].step
    result = DistilResult(
        model=folder / "checkpoints" / f"step-{ended.step:09d}" / "model",
        step=ended.step,
        best_step=step,
        finished=ended.finished,
        student=None,
        teacher=None,
        tokens=ended.tokens,
        seconds=ended.seconds,
        teacher_seconds=job.teacher_seconds,
    )
    if not ended.finished:
        return result
    target = folder / "model"
    if teacher.group.first:
        # A run that went on has an older one there.
        replace_folder(target, lambda place: copy_model(best / "model", place, (PROJECTIONS,)))
    teacher.group.wait()
    own = _measured(folder, step)
    theirs = job.scores(own)
    fast = speeds([teacher.read.folder, target], job.rows)
    sizes = [parameters(teacher.read), parameters(checkpoint.read(target))]
    result = replace(
        result,
        model=target,
        teacher=Side(parameters=sizes[0], tokens_per_second=fast[0], scores=theirs),
        student=Side(parameters=sizes[1], tokens_per_second=fast[1], scores=own),
        kept=kept_shares(own, theirs),
        faster=fast[1] / fast[0],
        smaller=sizes[0] / sizes[1],
    )
    if teacher.group.first:
        write_report(folder, result)
    return result


def _measured(folder: Path, step: int) -> Scores:
    """The scores on held-out data that the log has of a step."""
    lines = map(json.loads, (folder / LOG).read_text("utf-8").splitlines())
    found = [line["evaluation"] for line in lines if "evaluation" in line and line["step"] == step]
    scores: Scores = found[-1] if found else {}
    return scores


# --- the kinds --------------------------------------------------------------------------------


def _masked(recipe: DistilCorpus, teacher: Teacher) -> Job:
    read, plain = teacher.read, with_languages(recipe.pretraining())
    recipe = replace(recipe, corpus=plain.corpus)
    if [head.kind for head in read.heads.values()] != ["mlm"]:
        has = ", ".join(head.kind for head in read.heads.values()) or "none"
        raise CallError(f"{recipe.teacher}: its heads: {has}; [corpus] needs one for masked LM")
    student = _student(recipe, teacher)
    most = min(read.config.max_tokens, student.config.max_tokens)
    if recipe.corpus.length > most:
        raise CallError(
            f"corpus.length is {recipe.corpus.length}; the models have {most} positions"
        )
    hidden = HiddenTeaching(student, teacher.model, recipe.losses)
    student.to(teacher.group.device)
    rows, heldout = corpus_rows(plain, teacher.tokenizer, teacher.group)
    folder = read.folder
    work = MaskedDistilling(
        student,
        teacher.model,
        hidden,
        teacher.tokenizer,
        folder,
        rows,
        heldout,
        recipe,
        teacher.group,
    )

    def scores(_: Scores) -> Scores:
        group, tokenizer = teacher.group, teacher.tokenizer
        measured = MaskedLM(teacher.model, tokenizer, folder, rows, heldout, plain, group)
        with torch.no_grad():
            return measured.evaluate().results

    shown = next(iter((heldout or rows).values()))
    return Job(
        work=work,
        config=recipe.train,
        lr_scales={},
        data=data_hashes(plain, teacher.tokenizer),
        rows=[shown.row(i) for i in range(min(len(shown), 200))],
        scores=scores,
        teacher_seconds=0.0,
    )


def _texts(recipe: DistilTexts, teacher: Teacher) -> Job:
    read, table = teacher.read, recipe.texts
    settings = read_sentence_settings(read.folder)
    if table.limit is not None:
        settings = replace(settings, max_tokens=table.limit)
    student = _student(recipe, teacher)
    hidden = HiddenTeaching(student, teacher.model, recipe.losses)
    own, theirs = student.config.hidden_size, read.config.hidden_size
    pools = len(settings.pool)
    # What the teacher's own layers take says that they fit it.
    width_after(pools * theirs, settings)
    vectors = SentenceVectors(
        settings, hidden=own, projected=None if own == theirs else pools * theirs
    )
    student.to(teacher.group.device)
    vectors.to(teacher.group.device)
    began = time.perf_counter()

    def answered(files: tuple[Path, ...]) -> tuple[list[TextRow], Answers]:
        given = read_texts(files, table.column)
        texts, rows = readable(given, text_rows(teacher.tokenizer, read.config, settings, given))
        answers = teacher_vectors(
            teacher.engine,
            teacher.tokenizer,
            settings,
            teacher.sha256,
            texts,
            recipe.cache or recipe.output / "teacher",
            report=teacher.reporter("texts"),
        )
        return rows, answers

    train = answered(table.files)
    heldout = answered(table.heldout) if table.heldout else None
    work = VectorDistilling(student, vectors, hidden, read.folder, train, heldout, recipe)
    return Job(
        work=work,
        config=recipe.train,
        lr_scales={},
        data={
            name: fingerprint(expand(files))
            for name, files in (("files", table.files), ("heldout", table.heldout))
        },
        rows=[row.ids for row in (heldout or train)[0]],
        # It is like itself.
        scores=lambda own: {name: dict.fromkeys(found, 1.0) for name, found in own.items()},
        teacher_seconds=time.perf_counter() - began,
    )


def _heads(recipe: DistilHeads, teacher: Teacher) -> Job:
    read, plain = teacher.read, recipe.finetuning()
    tasks = load_tasks(plain)
    heads = check_heads(recipe, tasks, read.heads)
    if left := [name for name in read.heads if name not in heads]:
        say(f"heads without a task are left out: {', '.join(left)}")
    augment = recipe.augment
    pairs = [name for name, data in tasks.items() if len(data.task.text) == 2]
    if augment.files and pairs:
        raise CallError(
            f"augment.files is given and tasks.{pairs[0]} has two texts a row; files have one; "
            "fix: leave it out"
        )
    begun = student_of(read, recipe.student)
    student = new_model(plain, begun, heads)
    hidden = HiddenTeaching(student, teacher.model, recipe.losses)
    student.to(teacher.group.device)
    most = min(read.config.max_tokens, begun.config.max_tokens)
    limit = min(recipe.train.limit or most, most)
    of_tasks = {name: heads[head_of(name, task)] for name, task in recipe.tasks.items()}
    plan = Plan(teacher.tokenizer, tasks, of_tasks, recipe.train, limit=limit, seed=recipe.seed)
    began = time.perf_counter()
    if recipe.losses.soft:
        _ask(recipe, teacher, tasks, plan, limit)
    seconds = time.perf_counter() - began
    train_used_words(student, plan.used_words())

    def training(model: Model) -> tuple[Any, ...]:
        return model, teacher.tokenizer, read.folder, plain, tasks, plan, teacher.group

    def scores(_: Scores) -> Scores:
        return HeadTraining(*training(teacher.model)).evaluate().results

    work = HeadDistilling(hidden, recipe.losses, *training(student))
    return Job(
        work=work,
        config=recipe.train.config(steps=plan.steps, epoch=plan.steps_an_epoch),
        lr_scales=lr_scales(student, recipe.train),
        data={
            name: {part: fingerprint(getattr(data.task, part)) for part in ("train", "dev")}
            for name, data in tasks.items()
        }
        | ({"augment.files": fingerprint(expand(augment.files))} if augment.files else {}),
        rows=[row.ids for source in plan.sources.values() for row in source[:500]],
        scores=scores,
        teacher_seconds=seconds,
        before=work.before,
        cosines=work.cosines,
    )


def _ask(
    recipe: DistilHeads, teacher: Teacher, tasks: Mapping[str, TaskData], plan: Plan, limit: int
) -> None:
    """Put a teacher's answers on a plan's rows, and rows without labels beside them."""
    table = recipe.augment
    texts = read_texts(table.files, table.column) if table.files else []
    kinds = {name: data.task.kind for name, data in tasks.items()}
    for names in task_groups({name: data.task for name, data in tasks.items()}):
        title = " and ".join(names)
        rows = plan.sources[title]
        heads = {name: head_of(name, recipe.tasks[name]) for name in names}
        answers = partial(
            head_answers,
            teacher.engine,
            teacher.sha256,
            heads=heads,
            folder=recipe.cache or recipe.output / "teacher",
        )
        own = {name: teacher.read.heads[head] for name, head in heads.items()}
        beside: list[TrainRow] = []
        for what, made in _beside(table, texts, teacher.tokenizer, rows, own, limit):
            told = answers(made, report=teacher.reporter(f"{title}, {what}"))
            beside += [as_answered(*one, kinds) for one in zip(made, told, strict=True)]
        if texts:
            # A file may be in order, and a short run is not to see its beginning alone.
            np.random.default_rng(0).shuffle(beside)
        plan.beside[title] = beside
        # In place: the plan draws from this list.
        told = answers(rows, report=teacher.reporter(title))
        rows[:] = [replace(row, soft=soft) for row, soft in zip(rows, told, strict=True)]


def _beside(
    table: AugmentTable,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    rows: Sequence[TrainRow],
    heads: Mapping[str, HeadConfig],
    limit: int,
) -> Iterator[tuple[str, list[TrainRow]]]:
    """What goes along with a source's rows, and what to call it."""
    # Not of the recipe's seed, so that runs with other seeds share the answers.
    for copy in range(table.copies):
        made = other_words(rows, tokenizer, share=table.words, limit=limit, seed=copy)
        yield f"other words {copy + 1}", made
    if texts:
        yield "texts without labels", unlabelled(tokenizer, heads, texts, limit=limit)


def _student(recipe: DistilRecipe, teacher: Teacher) -> Model:
    """A student with the teacher's masked-LM head if that is learned; what it lacks is drawn."""
    torch.manual_seed(recipe.seed)
    begun = student_of(teacher.read, recipe.student)
    heads = teacher.read.heads if isinstance(recipe, DistilCorpus) else {}
    model = Model(begun.config, heads)
    names = model.state_dict().keys() & begun.tensors.keys()
    values = {name: torch.tensor(begun.tensors[name]) for name in names}
    model.load_state_dict(values, strict=False)
    return model


_JOBS: Mapping[type[DistilRecipe], Callable[[Any, Teacher], Job]] = {
    DistilHeads: _heads,
    DistilCorpus: _masked,
    DistilTexts: _texts,
}
