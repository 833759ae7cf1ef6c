"""The state of a run on disk: written whole or not at all, and found again.

    RUN/checkpoints/
      latest                 the name of the newest complete one; moved last
      best                   the name of the one with the best score on held-out data
      step-000001000/
        model/               a model folder like any other
        optimizer.safetensors
        training.json        the step, the recipe, the score

Nothing else is random: dropout is seeded by (seed, step), data by (seed, epoch, row).
"""

import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from enrobe.atomic import new_folder, replace_file
from enrobe.checkpoint import read_json
from enrobe.errors import CallError, EnrobeError, ModelError, show

LATEST, BEST = "latest", "best"
_OPTIMIZER, _TRAINING = "optimizer.safetensors", "training.json"
_NAME = re.compile(r"step-\d{9,}", re.ASCII)

# Settings that a run may be resumed with another value of: the steps done stay what they are.
CHANGEABLE = (
    *("steps", "evaluate_every", "patience", "save_every", "log_every", "keep", "micro_tokens"),
    *("gradient_cosines", "gradient_checkpointing", "loaders"),
    # where the data lie; what they are is known by its hashes
    *("files", "languages", "folder", "workers"),
)

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class State:
    """One checkpoint of a run; `recipe` is what the run was asked to do, as JSON values."""

    step: int
    # steps done
    recipe: Mapping[str, Any]
    score: float | None = None
    # on held-out data at this step, if it was measured; higher is better
    best_score: float | None = None
    # of the run so far
    waited: int = 0
    # evaluations since the best one
    threads: int = 0
    # sums of floats depend on them


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        """In `folder`, which need not exist; the last `keep` and the best one are kept."""
        self.folder = folder
        self._keep = keep

    def save(self, state: State, write_model: Callable[[Path], None], optimizer: Arrays) -> Path:
        """Write one, then point to it, then remove those no longer wanted.

        Raises:
            CallError: it cannot be written (a full disk); those before it are untouched.
        """
        name = f"step-{state.step:09d}"
        path = self.folder / name
        try:
            if path.exists():
                # Left by a run that was killed before it pointed here, and so never resumed from.
                shutil.rmtree(path)
            with new_folder(path) as work:
                write_model(work / "model")
                save_arrays(work / _OPTIMIZER, optimizer)
                record = {
                    "step": state.step,
                    "recipe": dict(state.recipe),
                    "score": state.score,
                    "best_score": state.best_score,
                    "waited": state.waited,
                    "threads": state.threads,
                }
                (work / _TRAINING).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
            if state.score is not None and state.score == state.best_score and not state.waited:
                replace_file(self.folder / BEST, name + "\n")
            replace_file(self.folder / LATEST, name + "\n")
            self._clean()
        except (OSError, CallError, safetensors.SafetensorError) as error:
            # Ours names the place already.
            what = str(error) if isinstance(error, EnrobeError) else f"{path}: {error}"
            raise CallError(f"{what}; {self.way_on()}") from None
        return path

    def way_on(self) -> str:
        """What is left after an error in writing, and how to go on."""
        last = self.named(LATEST) or "none"
        return f"the last complete checkpoint is {last}; fix: make room, then go on with --resume"

    def named(self, pointer: str) -> Path | None:
        """The checkpoint that a pointer names; None where there is none yet."""
        file = self.folder / pointer
        if not file.is_file():
            return None
        name = file.read_text("utf-8", "replace").strip()
        path = self.folder / name
        if not (_NAME.fullmatch(name) and path.is_dir()):
            raise CallError(
                f"{path}: missing, and {file} names it; fix: put it back, or start anew"
            )
        return path

    def _clean(self) -> None:
        pointers = [self.folder / LATEST, self.folder / BEST]
        named = {path.read_text("utf-8").strip() for path in pointers if path.is_file()}
        complete = sorted(self.folder.glob("step-*"))
        for path in complete[: -self._keep]:
            if path.name not in named:
                shutil.rmtree(path)
        # What a killed run left unfinished.
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path)


def load_state(folder: Path) -> tuple[State, dict[str, npt.NDArray[Any]]]:
    """A checkpoint's state and its optimiser's tensors.

    Raises:
        ModelError: a file is missing or damaged.
    """
    record: Any = read_json(folder / _TRAINING)
    try:
        optimizer = safetensors.numpy.load_file(folder / _OPTIMIZER)
        state = State(**record)
    except (OSError, TypeError, KeyError, safetensors.SafetensorError) as error:
        raise ModelError(f"{folder}: damaged ({error})") from None
    scores = (state.score, state.best_score)
    if not (
        type(state.step) is int
        and state.step >= 0
        and type(state.waited) is int
        and isinstance(state.recipe, dict)
        and all(score is None or isinstance(score, float | int) for score in scores)
    ):
        raise ModelError(f"{folder / _TRAINING}: damaged ({show(record)})")
    return state, optimizer


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Named arrays as safetensors."""
    # The library writes the memory as it lies.
    ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    safetensors.numpy.save_file(ordered, path)


def check_recipe(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> None:
    """Raise CallError where a resumed run is asked to be another one."""
    # As JSON has it: a tuple is a list.
    now = json.loads(json.dumps(now))
    for key in sorted(before.keys() | now.keys()):
        if not path and key not in before:
            # A table that the version which began the run did not have.
            continue
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            check_recipe(old, new, f"{path}{key}.")
        elif old != new and key not in CHANGEABLE:
            raise CallError(
                f"{path}{key} is {show(new)}, and was {show(old)} in the run to go on with; fix: "
                f"put it back, or name another output; may change: {', '.join(CHANGEABLE)}"
            )


def copy_model(
    source: Path,
    target: Path,
    beside: Collection[str] = (),
    more: Callable[[Path], None] | None = None,
) -> None:
    """Copy a checkpoint's model to a new folder.

    Args:
        source, target: folders.
        beside: names of what training keeps in it, which is left out.
        more: writes into the copy before it is there.
    """
    with new_folder(target) as made:
        left = shutil.ignore_patterns(*beside)
        shutil.copytree(source, made, dirs_exist_ok=True, ignore=left)
        if more is not None:
            more(made)
