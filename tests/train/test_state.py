"""Checkpoints: whole or not at all, whatever happens at whatever moment."""

import builtins
import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from enrobe.errors import CallError, EnrobeError, ModelError
from enrobe.train.state import BEST, LATEST, Checkpoints, State, load_state

KEEP = 2


class Killed(BaseException):
    """Nobody catches this one: what it interrupts is left as it is."""


def state(step: int, score: float | None = None, best: float | None = None) -> State:
    return State(step=step, recipe={"a": [1]}, score=score, best_score=best, threads=2)


def arrays(step: int) -> dict[str, np.ndarray]:
    # Not as it lies in memory.
    table = np.arange(step, step + 6, dtype=np.float32).reshape(2, 3).T
    return {"w|exp_avg": table, "w|step": np.array(step, np.float32)}


def write_model(step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_text(f"weights of {step}")

    return write


def save(checkpoints: Checkpoints, step: int, **scores: float) -> Path:
    return checkpoints.save(state(step, **scores), write_model(step), arrays(step))


def check_whole(path: Path | None, steps: set[int]) -> None:
    """A checkpoint is complete, and that of one of these steps."""
    assert path is not None
    found, optimizer = load_state(path)
    assert found.step in steps
    assert (path / "model/model.safetensors").read_text() == f"weights of {found.step}"
    assert optimizer["w|exp_avg"].tolist() == arrays(found.step)["w|exp_avg"].tolist()
    assert optimizer["w|step"].shape == ()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", keep=KEEP)
    assert checkpoints.named(LATEST) is None and checkpoints.named(BEST) is None
    path = save(checkpoints, 7, score=-2.5, best=-2.0)
    assert path == checkpoints.named(LATEST) == tmp_path / "c/step-000000007"
    assert checkpoints.named(BEST) is None
    found, optimizer = load_state(path)
    assert found == state(7, -2.5, -2.0)
    assert optimizer.keys() == arrays(7).keys()
    check_whole(path, {7})


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=KEEP)
    best = None
    kept = []
    for step, score in enumerate([1.0, 3.0, None, 2.0, 2.5, 4.0, None, None, 0.0], start=1):
        best = score if best is None else max(best, score if score is not None else best)
        checkpoints.save(state(step, score, best), write_model(step), arrays(step))
        kept.append(sorted(int(name[5:]) for name in names(tmp_path) if name.startswith("step-")))
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [5, 6], [6, 7], [6, 7, 8], [6, 8, 9]]
    check_whole(checkpoints.named(LATEST), {9})
    check_whole(checkpoints.named(BEST), {6})


def test_names_sort_as_steps_do(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (9, 10, 99_999, 100_000, 123_456_789):
        save(checkpoints, step)
        assert names(tmp_path) == {LATEST, f"step-{step:09d}"}


def test_a_pointer_to_nothing_is_an_error(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=KEEP)
    shutil.rmtree(save(checkpoints, 1))
    with pytest.raises(CallError) as caught:
        checkpoints.named(LATEST)
    assert "step-000000001: missing" in str(caught.value)
    assert "put it back, or start anew" in str(caught.value)
    for text in ("", "\n", ".", "..", "../elsewhere", "step-1/../..", "\0", "\udc80" * 3):
        (tmp_path / LATEST).write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(CallError, match="names it"):
            checkpoints.named(LATEST)


# --- a stop at every moment -----------------------------------------------------------------------

_REAL = {
    (os, "rename"): os.rename,
    (os, "replace"): os.replace,
    (os, "mkdir"): os.mkdir,
    (os, "fsync"): os.fsync,
    (os, "unlink"): os.unlink,
    (os, "rmdir"): os.rmdir,
    (builtins, "open"): builtins.open,
    (safetensors.numpy, "save_file"): safetensors.numpy.save_file,
}


@contextmanager
def stopped_at(moment: int, error: BaseException | None, under: Path) -> Iterator[list[str]]:
    """The changes of files are counted, and at the chosen one this error comes instead."""
    seen: list[str] = []
    patch = pytest.MonkeyPatch()
    gone = [False]

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if gone[0]:
                # A process that was killed does not tidy up either.
                raise Killed
            seen.append(name)
            if error is not None and len(seen) - 1 == moment:
                gone[0] = isinstance(error, Killed)
                raise error
            return real(*args, **kwargs)

        return call

    for (module, name), real in _REAL.items():
        patch.setattr(module, name, watched(name, real))
    # Path.open goes through io.open.
    import io

    patch.setattr(io, "open", watched("open", io.open))
    try:
        yield seen
    finally:
        patch.undo()


def prepared(folder: Path) -> Checkpoints:
    """A run whose next checkpoint is the best, and makes an older one unwanted; and what a killed
    process left.
    """
    checkpoints = Checkpoints(folder, keep=KEEP)
    save(checkpoints, 1, score=1.0, best=1.0)
    save(checkpoints, 2)
    save(checkpoints, 3)
    (folder / "step-000000004").mkdir()
    (folder / "step-000000004/training.json").write_text("{}")
    (folder / ".step-000000004.xyz").mkdir()
    return checkpoints


@pytest.mark.parametrize("kind", ["killed", "full", "denied"])
def test_a_stop_at_any_moment_leaves_a_whole_checkpoint(kind: str, tmp_path: Path) -> None:
    errors: dict[str, BaseException] = {
        "killed": Killed(),
        "full": OSError(errno.ENOSPC, "No space left on device"),
        "denied": PermissionError(errno.EACCES, "Permission denied"),
    }
    last = 3
    messages = set()
    for moment in itertools.count():
        folder = tmp_path / str(moment)
        checkpoints = prepared(folder)
        caught = ""
        with stopped_at(moment, errors[kind], folder) as seen:
            try:
                save(checkpoints, 4, score=2.0, best=2.0)
            except (Killed, CallError) as error:
                caught = str(error)
        latest = checkpoints.named(LATEST)
        if caught and kind != "killed":
            messages.add(caught)
            assert f"the last complete checkpoint is {latest}; fix: make room" in caught
            assert caught.endswith("then go on with --resume") and "\n" not in caught
        assert latest is not None
        check_whole(latest, {3, 4})
        now = load_state(latest)[0].step
        # Once it is there it stays there.
        assert kind != "killed" or now >= last
        last = now
        # And the run that goes on is none the worse for it.
        again = Checkpoints(folder, keep=KEEP)
        if now == 3:
            save(again, 4, score=2.0, best=2.0)
        save(again, 5)
        check_whole(again.named(LATEST), {5})
        check_whole(again.named(BEST), {4})
        assert names(folder) == {LATEST, BEST, "step-000000004", "step-000000005"}
        if moment >= len(seen):
            break
    assert last == 4
    print(f"{moment} moments: {seen}")
    assert moment > 12
    if kind == "full":
        assert any("No space left on device" in message for message in messages)


def test_a_full_disk_in_the_models_own_writing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=KEEP)

    def full(folder: Path) -> None:
        raise CallError(f"{folder}: cannot be written (No space left on device)")

    with pytest.raises(CallError, match=r"No space left.*checkpoint is none; .*--resume"):
        checkpoints.save(state(1), full, arrays(1))
    save(checkpoints, 2)
    with pytest.raises(CallError, match=r"No space left.*checkpoint is .*step-000000002; .*room"):
        checkpoints.save(state(3), full, arrays(3))
    assert names(tmp_path) == {LATEST, "step-000000002"}


# --- damage ---------------------------------------------------------------------------------------

GOOD = {"step": 1, "recipe": {}, "score": None, "best_score": None, "threads": 1}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{}",
        b'{"step": 1}',
        json.dumps({**GOOD, "more": 1}).encode(),
        json.dumps({**GOOD, "step": "1"}).encode(),
        json.dumps({**GOOD, "step": None}).encode(),
        json.dumps({**GOOD, "step": 1.5}).encode(),
        json.dumps({**GOOD, "step": True}).encode(),
        json.dumps({**GOOD, "step": -1}).encode(),
        json.dumps({**GOOD, "recipe": [1]}).encode(),
        json.dumps({**GOOD, "best_score": "high"}).encode(),
        b"[" * 100_000,
        None,
    ],
)
def test_a_damaged_training_json(content: bytes | None, tmp_path: Path) -> None:
    path = save(Checkpoints(tmp_path, keep=KEEP), 1)
    refused(path, path / "training.json", content)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\xff" * 8, "cut", "bit", None])
def test_a_damaged_optimizer(content: bytes | str | None, tmp_path: Path) -> None:
    path = save(Checkpoints(tmp_path, keep=KEEP), 1)
    file = path / "optimizer.safetensors"
    whole = file.read_bytes()
    if content == "cut":
        content = whole[:-3]
    elif content == "bit":
        content = whole[:12] + bytes([whole[12] ^ 0xFF]) + whole[13:]
    assert not isinstance(content, str)
    refused(path, file, content)


def refused(folder: Path, file: Path, content: bytes | None) -> None:
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_state(folder)
    assert isinstance(caught.value, EnrobeError)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
