"""Several runs of one recipe: with other seeds, and each task by itself for comparison.

    OUTPUT/
      seed-1/, seed-2/, ...   a run with each seed; without `seeds` its files stand in OUTPUT itself
        alone/TASK/           with `baseline`: the same run with this task alone
      model/                  that of the seed with the best score

A run that has ended leaves `result.json`, and with it is not begun again; its checkpoints go, so
that of many runs only the models take space.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from enrobe.atomic import check_new, replace_file, replace_folder
from enrobe.checkpoint import read_json
from enrobe.data.splits import TaskData
from enrobe.errors import ModelError
from enrobe.evaluate.seeds import Spread
from enrobe.train import finetune
from enrobe.train.finetune import values_of
from enrobe.train.finetune_data import load_tasks
from enrobe.train.finetune_recipe import FinetuneRecipe
from enrobe.train.finetune_result import FinetuneResult, Gain
from enrobe.train.group import Group
from enrobe.train.state import check_recipe, copy_model
from enrobe.train.work import named, say

RESULT = "result.json"


def run(recipe: FinetuneRecipe, *, resume: bool) -> FinetuneResult:
    """All runs of a recipe, or what is left of them; see `enrobe.finetune`."""
    if not (recipe.seeds or recipe.baseline):
        return finetune.run(recipe, resume=resume)
    if not resume:
        check_new(recipe.output)
    with Group.joined(recipe.train.device) as group:
        # Read once: a dev set that is split off is the same whatever the seed.
        try:
            tasks = load_tasks(recipe)
            done: dict[tuple[int, str | None], FinetuneResult] = {}
            for seed, task, part in _parts(recipe):
                result = _one(recipe, part, tasks, group, resume=resume)
                done[seed, task] = result
                if not result.finished:
                    return _summed(result, done.values())
            group.wait()
            return _together(recipe, done, group)
        except OSError as error:
            raise named(error, recipe.output) from None


def _parts(recipe: FinetuneRecipe) -> Iterator[tuple[int, str | None, FinetuneRecipe]]:
    """Seed, task (None: all together) and recipe of every run."""
    for seed in recipe.seeds or (recipe.seed,):
        folder = recipe.output / f"seed-{seed}" if recipe.seeds else recipe.output
        part = replace(recipe, seed=seed, seeds=(), baseline=False, output=folder)
        yield seed, None, part
        for name in recipe.tasks if recipe.baseline else ():
            yield (
                seed,
                name,
                replace(
                    part,
                    tasks={name: recipe.tasks[name]},
                    masked_lm=None,
                    output=folder / "alone" / name,
                ),
            )


def _one(
    recipe: FinetuneRecipe,
    part: FinetuneRecipe,
    tasks: Mapping[str, TaskData],
    group: Group,
    *,
    resume: bool,
) -> FinetuneResult:
    """One run, or what an earlier call made of it."""
    folder = part.output
    own = {name: tasks[name] for name in part.tasks}
    values = {**values_of(part, own), "split_seed": recipe.seed}
    file = folder / RESULT
    if resume and file.is_file():
        record: Any = read_json(file)
        try:
            check_recipe(record["recipe"], values)
            return FinetuneResult.of_record(record["result"], folder / "model")
        except (KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{file}: damaged ({error}); fix: delete it") from None
    say(f"{folder.relative_to(recipe.output.parent)}: {' and '.join(own)}, seed {part.seed}")
    result = finetune.run(part, resume=True, tasks=own, group=group, values=values)
    if result.finished and group.first:
        record = {"recipe": values, "result": result.to_dict()}
        replace_file(file, json.dumps(record, indent=2) + "\n")
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def _together(
    recipe: FinetuneRecipe, done: Mapping[tuple[int, str | None], FinetuneResult], group: Group
) -> FinetuneResult:
    seeds = recipe.seeds or (recipe.seed,)
    joint = [done[seed, None] for seed in seeds]
    # The earlier of two equals.
    best = max(joint, key=lambda result: result.score or 0.0)
    target = recipe.output / "model"
    if recipe.seeds and group.first:
        replace_folder(target, lambda place: copy_model(best.model, place))
    spread = {name: _spread([r.scores[name] for r in joint]) for name in recipe.tasks}
    gains: dict[str, dict[str, Gain]] = {}
    for name in recipe.tasks if recipe.baseline else ():
        alone = _spread([done[seed, name].scores[name] for seed in seeds])
        gains[name] = {}
        for metric, mine in spread[name].items():
            pairs = zip(mine.values, alone[metric].values, strict=True)
            apart = Spread.of([together - by_itself for together, by_itself in pairs])
            gains[name][metric] = Gain(alone=alone[metric], together=mine, difference=apart)
    result = replace(
        _summed(best, done.values()),
        model=target,
        seed=seeds[joint.index(best)],
        spread=spread if recipe.seeds else {},
        gains=gains,
    )
    if group.first:
        replace_file(recipe.output / "runs.json", json.dumps(result.to_dict(), indent=2) + "\n")
    return result


def _spread(scores: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    return {metric: Spread.of([one[metric] for one in scores]) for metric in scores[0]}


def _summed(result: FinetuneResult, all_of_them: Iterable[FinetuneResult]) -> FinetuneResult:
    """The result with the work of all runs of this call."""
    runs = list(all_of_them)
    return replace(
        result,
        tokens=sum(run.tokens for run in runs),
        seconds=sum(run.seconds for run in runs),
        evaluation_seconds=sum(run.evaluation_seconds for run in runs),
    )
