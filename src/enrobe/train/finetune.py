"""Fine-tuning: labelled files and a recipe to a model with a head a task.

One task is a mix of one. This is one run; `finetune_runs` makes several of a recipe.
"""

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from enrobe import checkpoint, hub
from enrobe.atomic import check_new, replace_folder
from enrobe.data.splits import TaskData
from enrobe.text.tokenizer import Tokenizer
from enrobe.train.finetune_data import Plan, fingerprint, load_tasks
from enrobe.train.finetune_model import lr_scales, new_heads, new_model
from enrobe.train.finetune_recipe import FinetuneRecipe, head_of
from enrobe.train.finetune_result import FinetuneResult
from enrobe.train.finetune_work import ADAPTER, BESIDE, HeadTraining
from enrobe.train.finished import complete_model, replace_report, reports_of, scores_of
from enrobe.train.group import Group
from enrobe.train.loop import Run, fit
from enrobe.train.recipe import as_values
from enrobe.train.report import RunFacts
from enrobe.train.state import BEST, LATEST, Checkpoints, copy_model, load_state
from enrobe.train.word_rows import train_used_words
from enrobe.train.work import named, say


def run(
    recipe: FinetuneRecipe,
    *,
    resume: bool,
    tasks: Mapping[str, TaskData] | None = None,
    group: Group | None = None,
    values: Mapping[str, Any] | None = None,
) -> FinetuneResult:
    """Fine-tune once, or go on; see `enrobe.finetune`.

    Args:
        recipe: its `seeds` and `baseline` are not looked at.
        resume: go on from the last checkpoint in its output, where there is one.
        tasks: its files, if they have been read.
        group: the processes, if they have been joined.
        values: what the run is, to be compared when it goes on; None: `values_of`.
    """
    folder = recipe.output
    if not resume:
        check_new(folder)
    with Group.joined(recipe.train.device) if group is None else nullcontext(group) as group:
        try:
            tasks = load_tasks(recipe) if tasks is None else tasks
            read = checkpoint.read(hub.resolve(recipe.model))
            tokenizer = Tokenizer.from_folder(
                read.folder, read.config.family, read.config.vocab_size
            )
            heads = new_heads(recipe, tasks, read)
            model = new_model(recipe, read, heads)
            limit = min(recipe.train.limit or read.config.max_tokens, read.config.max_tokens)
            of_tasks = {name: heads[head_of(name, task)] for name, task in recipe.tasks.items()}
            plan = Plan(
                tokenizer,
                tasks,
                of_tasks,
                recipe.train,
                limit=limit,
                seed=recipe.seed,
                masked_lm=recipe.masked_lm,
            )
            config = recipe.train.config(steps=plan.steps, epoch=plan.steps_an_epoch)
            rows = sum(map(len, plan.sources.values()))
            values = dict(values_of(recipe, tasks) if values is None else values)
            if recipe.lora is not None:
                # The matrices that stand still are read again from where the run began.
                values["base"] = fingerprint(checkpoint.weight_files(read.folder))
            say(f"{rows:,} rows to learn from, {plan.steps:,} steps")
            model.gradient_checkpointing = recipe.train.gradient_checkpointing
            model.to(group.device)
            train_used_words(model, plan.used_words())
            work = HeadTraining(model, tokenizer, read.folder, recipe, tasks, plan, group)
            if group.first:
                folder.mkdir(parents=True, exist_ok=True)
            group.wait()
            ended = fit(
                work,
                config,
                folder=folder,
                recipe=values,
                seed=recipe.seed,
                group=group,
                resume=resume,
                lr_scales=lr_scales(model, recipe.train),
                measure_first=False,
                before=work.before,
                cosines=work.cosines,
            )
            return _result(recipe, tasks, work, ended, group)
        except OSError as error:
            raise named(error, folder) from None


def values_of(recipe: FinetuneRecipe, tasks: Mapping[str, TaskData]) -> dict[str, Any]:
    """What a run is, as JSON; its files by their content, wherever they lie."""
    values = as_values(recipe)
    for name in ("output", "seeds", "baseline"):
        del values[name]
    for name, data in tasks.items():
        for part in ("train", "dev"):
            values["tasks"][name][part] = fingerprint(getattr(data.task, part))
        del values["tasks"][name]["test"]
    return values


def _result(
    recipe: FinetuneRecipe,
    tasks: Mapping[str, TaskData],
    work: HeadTraining,
    ended: Run,
    group: Group,
) -> FinetuneResult:
    folder = recipe.output
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    best = checkpoints.named(BEST) or checkpoints.named(LATEST)
    assert best is not None
    step = load_state(best)[0].step
    scores: Mapping[str, Mapping[str, float]] = {}
    if ended.finished:
        target, source = folder / "model", best / "model"
        work.read(source)
        work.model.eval()
        reports = reports_of(work.heads, work.dev_outputs(), work.metrics)
        scores = scores_of(reports)
        facts = _facts(recipe, work, ended, step)

        def write(place: Path) -> None:
            copy_model(
                source,
                place,
                BESIDE,
                lambda made: complete_model(made, work.model.config.family, reports, tasks, facts),
            )

        if group.first:
            # A run that went on has older ones there.
            replace_folder(target, write)
            replace_report(folder, reports, tasks, facts)
            if recipe.lora is not None:
                replace_folder(folder / ADAPTER, partial(shutil.copytree, source / ADAPTER))
    else:
        target = folder / "checkpoints" / f"step-{ended.step:09d}" / "model"
    mains = [next(iter(measures.values())) for measures in scores.values()]
    # Who goes on from here, in whichever process, finds all of it.
    group.wait()
    return FinetuneResult(
        model=target,
        step=ended.step,
        best_step=step,
        finished=ended.finished,
        early=ended.early,
        scores=scores,
        score=sum(mains) / len(mains) if mains else None,
        tokens=ended.tokens,
        seconds=ended.seconds,
        evaluation_seconds=work.evaluation_seconds,
        seed=recipe.seed,
    )


def _facts(recipe: FinetuneRecipe, work: HeadTraining, ended: Run, step: int) -> RunFacts:
    values = as_values(recipe)
    kept = ("seed", "train", "lora", "masked_lm")
    return RunFacts(
        name=recipe.output.name,
        model=hub.name_of(recipe.model),
        settings={key: values[key] for key in kept if values.get(key) is not None},
        steps=ended.step,
        best_step=step,
        early=ended.early,
        tokens=ended.tokens,
        seconds=ended.seconds,
        evaluation_seconds=work.evaluation_seconds,
        # Of the state: while training, the word table may be the used rows alone.
        parameters=sum(tensor.numel() for tensor in work.model.state_dict().values()),
        device=next(work.model.parameters()).device.type,
    )
