"""Several runs of one recipe: seeds, and each task alone; over several processes, too."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enrobe import checkpoint
from enrobe.errors import CallError, ModelError
from enrobe.evaluate.seeds import Spread
from enrobe.train import finetune, finetune_runs
from enrobe.train.finetune_recipe import FinetuneRecipe
from tests.train.finetune_toys import (
    equal,
    labelled,
    model_folder,
    recipe,
    slots_file,
    task,
    two_tasks,
)
from tests.train.toys import furthest, join, log_lines, start, start_two, weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("base") / "model")


def intents(tmp_path: Path) -> dict[str, Any]:
    return two_tasks(slots_file(tmp_path))


def test_seeds_are_runs_of_their_own_and_the_best_ones_model_is_the_result(
    folder: Path, tmp_path: Path
) -> None:
    path = labelled(tmp_path, "classify", rows=40)
    # The dev set is split off: the same one for every seed.
    tasks = {"mine": task("classify", path, dev=[])}
    several = replace(recipe(folder, tmp_path / "all", tasks, epochs=1), seeds=(3, 1, 2))
    result = finetune_runs.run(several, resume=False)
    single = finetune.run(replace(several, seeds=(), output=tmp_path / "one"), resume=False)
    # Seed 1 is the recipe's own, and so its split is the one of all.
    assert equal(tmp_path / "all/seed-1/model", single.model)
    assert not equal(tmp_path / "all/seed-3/model", tmp_path / "all/seed-2/model")
    spread = result.spread["mine"]
    assert list(spread) == ["accuracy", "macro_f1", "matthews"] and not result.gains
    assert spread["accuracy"].values[1] == single.scores["mine"]["accuracy"]
    for metric, one in spread.items():
        assert one == Spread.of(one.values), metric
    best = max(range(3), key=lambda n: spread["accuracy"].values[n])
    assert result.seed == (3, 1, 2)[best] and result.score == spread["accuracy"].values[best]
    assert result.model == tmp_path / "all/model"
    assert equal(result.model, tmp_path / f"all/seed-{result.seed}/model")
    stored = json.loads((tmp_path / "all/runs.json").read_text())
    assert stored == json.loads(json.dumps(result.to_dict()))
    assert not (tmp_path / "all/seed-1/checkpoints").exists()


def test_alone_and_together(folder: Path, tmp_path: Path) -> None:
    tasks = intents(tmp_path)
    both = replace(recipe(folder, tmp_path / "r", tasks, epochs=1), baseline=True)
    result = finetune_runs.run(both, resume=False)
    assert result.model == tmp_path / "r/model" and not result.spread
    assert set(checkpoint.read(result.model).heads) == {"intent", "slots"}
    assert set(result.gains) == {"intent", "slots"} == set(result.scores)
    for name, gains in result.gains.items():
        job = recipe(folder, tmp_path / name, {name: tasks[name]}, epochs=1)
        alone = finetune.run(job, resume=False)
        assert equal(alone.model, tmp_path / "r/alone" / name / "model")
        assert {metric: gain.alone.mean for metric, gain in gains.items()} == alone.scores[name]
        for metric, gain in gains.items():
            assert gain.together.mean == result.scores[name][metric]
            assert gain.difference == Spread.of([gain.together.mean - gain.alone.mean])


def killed_in(job: FinetuneRecipe, place: str) -> None:
    """Die as the run that ends in this folder is about to write its result."""
    write = finetune_runs.replace_file

    def die(path: Path, text: str) -> None:
        if str(path.parent).endswith(place):
            os._exit(9)
        write(path, text)

    finetune_runs.replace_file = die  # type: ignore[assignment]
    finetune_runs.run(job, resume=False)


def test_a_study_killed_in_the_middle_goes_on(folder: Path, tmp_path: Path) -> None:
    def of(name: str) -> FinetuneRecipe:
        made = recipe(folder, tmp_path / name, intents(tmp_path), epochs=1)
        return replace(made, seeds=(1, 2), baseline=True)

    expected = finetune_runs.run(of("whole"), resume=False)
    assert join(start(killed_in, of("killed"), "seed-2/alone/intent")) == [9]
    done = tmp_path / "killed/seed-1/result.json"
    stamp = done.stat().st_mtime_ns
    result = finetune_runs.run(of("killed"), resume=True)
    assert (result.spread, result.gains) == (expected.spread, expected.gains)
    assert equal(result.model, expected.model)
    # What was done was not done again.
    assert done.stat().st_mtime_ns == stamp and 0 < result.tokens < expected.tokens
    again = finetune_runs.run(of("killed"), resume=True)
    assert again.gains == expected.gains and again.tokens == 0
    # A further seed is only that.
    more = finetune_runs.run(replace(of("killed"), seeds=(1, 2, 3), baseline=False), resume=True)
    assert len(more.spread["intent"]["accuracy"].values) == 3
    changed = replace(of("killed"), train=replace(of("killed").train, lr=1e-3))
    with pytest.raises(CallError, match=r"train\.lr is 0\.001, and was 0\.005"):
        finetune_runs.run(changed, resume=True)
    with pytest.raises(CallError, match="exists and is not empty"):
        finetune_runs.run(of("killed"), resume=False)
    done.write_text('{"recipe": {}, "result": {"model": 1}}')
    with pytest.raises(ModelError, match=r"result\.json: damaged"):
        finetune_runs.run(of("killed"), resume=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": (1, 1)}, "seeds are (1, 1); the same one stands there twice"),
        ({"seeds": (-1,)}, "seed is -1"),
        ({"baseline": True}, "baseline is for several tasks, and there is one"),
    ],
)
def test_what_makes_no_sense(changes: Any, words: str, tmp_path: Path) -> None:
    job = recipe(tmp_path, tmp_path / "r", {"x": task("classify", tmp_path / "a.csv")})
    with pytest.raises(CallError) as caught:
        replace(job, **changes)
    assert words in str(caught.value)


def job_of_two(job: FinetuneRecipe) -> None:
    finetune_runs.run(job, resume=False)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Unequal shares, tasks that one process lacks, and a last batch of a single row."""
    base = model_folder(tmp_path / "model", dropout=0.0)
    tasks = intents(tmp_path)
    tasks["number"] = task("regress", labelled(tmp_path, "regress", rows=13))
    settings: dict[str, Any] = {"epochs": 1, "batch_rows": 4, "lr": 1e-3, "evaluate_every": 5}
    settings |= {"weighting": "uncertainty", "gradient_cosines": 2}
    two = recipe(base, tmp_path / "two", tasks, **settings)
    alone = finetune.run(recipe(base, tmp_path / "one", tasks, **settings), resume=False)
    assert join(*start_two(job_of_two, two)) == [0, 0]
    # A key's bias moves no softmax: its gradient is rounding, which Adam makes as large as any.
    ours, theirs = (
        {n: value for n, value in weights(path).items() if not n.endswith("key.bias")}
        for path in (alone.model, tmp_path / "two/model")
    )
    assert furthest(ours, theirs) <= 1e-5
    one, other = (log_lines(tmp_path / name) for name in ("one", "two"))
    assert [line.keys() for line in one] == [line.keys() for line in other]
    looks = 0
    for line, same in zip(one, other, strict=True):
        for name, measures in line.get("evaluation", {}).items():
            assert same["evaluation"][name] == pytest.approx(measures, abs=1e-5)
        looks += "cosines" in line
        assert same.get("cosines", {}) == pytest.approx(line.get("cosines", {}), abs=1e-4)
    assert looks == 6
