"""The loop: interrupted anywhere it ends where it would have; what is wrong stops it cleanly."""

import errno
import json
import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from enrobe.errors import CallError, ModelError, TrainError
from enrobe.nn import kernels
from enrobe.train import loop
from enrobe.train.loop import check_recipe, fit
from enrobe.train.state import LATEST, Checkpoints, load_state
from enrobe.train.work import Evaluation
from tests.train.toys import (
    Toy,
    fit_toy,
    furthest,
    join,
    log_lines,
    same,
    signalled_twice,
    start,
    toy_config,
)

STEPS = 6
# Losses a step: 12 rows, 5 at once.
MICROS = 3


def undisturbed(folder: Path, **changes: Any) -> Toy:
    work = Toy()
    run = fit_toy(work, folder, **changes)
    assert run.finished and run.step == changes.get("steps", STEPS)
    return work


def latest(folder: Path) -> Path | None:
    return Checkpoints(folder / "checkpoints", keep=2).named(LATEST)


def logged(folder: Path) -> list[int]:
    return [line["step"] for line in log_lines(folder)]


# --- interrupted --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stopped_by_a_signal_at_any_step_it_goes_on_bitwise(
    optimizer: str, number: signal.Signals, tmp_path: Path
) -> None:
    wanted = undisturbed(tmp_path / "whole", optimizer=optimizer).weights()
    before = signal.getsignal(number)
    for step in range(STEPS):
        folder = tmp_path / str(step)

        def watch(loss: int, at: int = step * MICROS + 1) -> None:
            if loss == at:
                os.kill(os.getpid(), number)

        run = fit_toy(Toy(watch=watch), folder, optimizer=optimizer)
        # The step that the signal falls into is the last one.
        assert run.step == step + 1
        assert run.finished == (step + 1 == STEPS)
        assert signal.getsignal(number) is before
        path = latest(folder)
        assert path is not None and load_state(path)[0].step == step + 1
        work = Toy()
        again = fit_toy(work, folder, resume=True, optimizer=optimizer)
        assert again.finished and again.first is None
        assert same(work.weights(), wanted), step
        assert logged(folder) == sorted({2, 4, 6, step + 1})


def test_stopped_after_every_step_it_goes_on_bitwise(tmp_path: Path) -> None:
    wanted = undisturbed(tmp_path / "whole").weights()
    folder = tmp_path / "run"
    for step in range(STEPS):

        def watch(loss: int) -> None:
            if loss == 0:
                os.kill(os.getpid(), signal.SIGTERM)

        work = Toy(watch=watch)
        assert fit_toy(work, folder, resume=True).step == step + 1
    assert same(work.weights(), wanted)
    assert logged(folder) == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_that_is_resumed_does_nothing(tmp_path: Path) -> None:
    wanted = undisturbed(tmp_path).weights()
    work = Toy()
    run = fit_toy(work, tmp_path, resume=True)
    assert run.finished and run.tokens == 0 and run.last is None
    assert same(work.weights(), wanted) and not work.losses
    assert logged(tmp_path) == [2, 4, 6]


def test_resumed_where_there_is_nothing_yet_it_begins(tmp_path: Path) -> None:
    wanted = undisturbed(tmp_path / "whole").weights()
    work = Toy()
    assert fit_toy(work, tmp_path / "run", resume=True).finished
    assert same(work.weights(), wanted)


def test_a_second_ctrl_c_acts_at_once(tmp_path: Path) -> None:
    def watch(loss: int) -> None:
        if loss == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("it went on")

    work = Toy(watch=watch)
    with pytest.raises(KeyboardInterrupt):
        fit_toy(work, tmp_path)
    assert work.losses == 4 and latest(tmp_path) is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_sigterm_acts_at_once(tmp_path: Path) -> None:
    assert join(start(signalled_twice, tmp_path)) == [-signal.SIGTERM]
    assert not (tmp_path / "checkpoints").exists()


def test_one_signal_of_each_kind_acts_as_two_of_one(tmp_path: Path) -> None:
    def watch(loss: int) -> None:
        if loss == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)

    assert fit_toy(Toy(watch=watch), tmp_path).step == 2


def test_it_runs_off_the_main_thread(tmp_path: Path) -> None:
    wanted = undisturbed(tmp_path / "whole").weights()
    work = Toy()
    before = signal.getsignal(signal.SIGTERM)
    errors: list[BaseException] = []

    def job() -> None:
        try:
            fit_toy(work, tmp_path / "run")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    assert not errors
    assert same(work.weights(), wanted)
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_in_making_a_batch_comes_out_and_checkpoints_stay(tmp_path: Path) -> None:
    class Broken(Toy):
        def batch(self, step: int) -> Any:
            if step == 4:
                raise CallError("a shard is missing")
            return super().batch(step)

    with pytest.raises(CallError, match="a shard is missing"):
        fit_toy(Broken(), tmp_path)
    work = Toy()
    fit_toy(work, tmp_path, resume=True)
    assert same(work.weights(), undisturbed(tmp_path / "whole").weights())


# --- another run than before ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"lr": 0.06}, "train.lr is 0.06, and was 0.05"),
        ({"seed": 2}, "seed is 2, and was 1"),
        ({"betas": (0.9, 0.99)}, "train.betas"),
        ({"clip": None}, "train.clip is None, and was 1.0"),
        ({"batch_rows": 13}, "train.batch_rows"),
        ({"optimizer": "muon"}, "train.optimizer"),
        ({"steps": 4}, "steps is 4; 6 of the run are done already"),
    ],
)
def test_another_recipe_is_refused_by_its_key(
    changes: dict[str, Any], key: str, tmp_path: Path
) -> None:
    undisturbed(tmp_path)
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(CallError) as caught:
        fit_toy(Toy(), tmp_path, resume=True, **changes)
    assert key in str(caught.value)
    after = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file())
    assert after == before


def test_more_steps_are_allowed_and_equal_a_longer_run(tmp_path: Path) -> None:
    wanted = undisturbed(tmp_path / "whole", schedule="constant", steps=9).weights()
    fit_toy(Toy(), tmp_path / "run", schedule="constant")
    work = Toy()
    run = fit_toy(
        work,
        tmp_path / "run",
        resume=True,
        schedule="constant",
        steps=9,
        log_every=3,
        save_every=1,
        keep=5,
        evaluate_every=2,
    )
    assert run.finished and run.step == 9
    assert same(work.weights(), wanted)


def test_recipes_are_compared_as_json_has_them() -> None:
    before = {"a": [1, 2], "t": {"x": 1, "keep": 2}, "n": None}
    check_recipe(before, {"a": (1, 2), "t": {"x": 1.0, "keep": 3}, "n": None})
    # A table that the version which began the run did not have.
    check_recipe(before, {**before, "later": {"x": 1}})
    for other in ({**before, "a": (1, 3)}, {**before, "t": {"keep": 2}}, {"t": before["t"]}):
        with pytest.raises(CallError, match="in the run to go on with"):
            check_recipe(before, other)
    with pytest.raises(CallError, match=r"t\.y is 2, and was None"):
        check_recipe(before, {**before, "t": {"x": 1, "y": 2}})


def test_other_threads_are_said(tmp_path: Path, capsys: Any) -> None:
    undisturbed(tmp_path)
    assert "threads" not in capsys.readouterr().err
    torch.set_num_threads(2)
    fit_toy(Toy(), tmp_path, resume=True)
    assert "note: 2 threads, 1 before" in capsys.readouterr().err


# --- what is computed -----------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_gradients_add_up_over_parts_of_any_size(optimizer: str, tmp_path: Path) -> None:
    runs = []
    for micro in (1, 5, 12):
        work = Toy(dropout=0.0, micro=micro)
        fit_toy(work, tmp_path / str(micro), optimizer=optimizer, clip=0.1)
        runs.append(work.weights())
    assert furthest(runs[1], runs[0]) <= 1e-6
    assert furthest(runs[2], runs[0]) <= 1e-6


def test_the_gradient_is_clipped(tmp_path: Path) -> None:
    for clip in (None, 1e3, 1e-3):
        work, moved = Toy(dropout=0.0), []

        class Watched(torch.optim.AdamW):
            def step(self, *_: Any, norms: list[float] = moved) -> None:  # type: ignore[override]
                parameters = [p for group in self.param_groups for p in group["params"]]
                grads = [p.grad.norm() for p in parameters if p.grad is not None]
                norms.append(float(torch.stack(grads).norm()))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim, "AdamW", Watched)
            # Our own AdamW scales on the way: tests/train/test_optim.py.
            patch.setattr(kernels, "_kernels", lambda: None)
            fit_toy(work, tmp_path / str(clip), clip=clip, steps=1)
        said = log_lines(tmp_path / str(clip))[-1]["gradient_norm"]
        assert moved[0] == pytest.approx(min(said, clip or math.inf), rel=1e-4)


def test_other_seeds_give_other_dropout_and_each_step_its_own(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Watched(Toy):
        def loss(self, micro: Any, totals: Any) -> Any:
            seen.append(torch.rand(()))
            return super().loss(micro, totals)

    for seed in (1, 1, 2):
        fit_toy(Watched(), tmp_path / f"{len(seen)}", seed=seed)
    one, again, other = (seen[i : i + STEPS * MICROS] for i in range(0, len(seen), STEPS * MICROS))
    assert one == again
    assert len({*map(float, one), *map(float, other)}) == 2 * STEPS * MICROS


def test_the_log_has_means_shares_and_rates(tmp_path: Path) -> None:
    work = Toy()
    run = fit_toy(work, tmp_path, log_every=4)
    lines = log_lines(tmp_path)
    assert [line["step"] for line in lines] == [4, 6]
    for line in lines:
        assert line.keys() == {
            *("step", "loss", "lr", "gradient_norm", "rows_share"),
            *("tokens_per_second", "utilisation"),
        }
        assert line["rows_share"] == 0.5
        assert line["tokens_per_second"] > 0
    assert lines[-1]["lr"] == pytest.approx(toy_config().lr_at(5, STEPS))
    assert run.tokens == STEPS * 12 * 2 and run.seconds > 0
    fit_toy(Toy(), tmp_path / "each", log_every=1)
    each = [line["loss"] for line in log_lines(tmp_path / "each")]
    assert lines[0]["loss"] == pytest.approx(np.mean(each[:4]), rel=1e-5)


def test_held_out_data_is_measured_when_asked_and_the_best_is_kept(tmp_path: Path) -> None:
    work = Toy()
    work.scores = [0.0, 5.0, math.nan, 1.0, 2.0]
    run = fit_toy(work, tmp_path, evaluate_every=2, save_every=1, keep=1, steps=7)
    assert not work.scores
    assert run.first is not None and run.first.results == {"dev": {"score": 0.0}}
    assert run.last is not None and run.last.score == 2.0
    best = Checkpoints(tmp_path / "checkpoints", keep=1).named("best")
    assert best is not None and best.name == "step-000000002"
    assert {path.name for path in (tmp_path / "checkpoints").glob("step-*")} == {
        "step-000000002",
        "step-000000007",
    }
    # What was best is known to a run that goes on.
    work = Toy()
    work.scores = [4.0, 4.5]
    fit_toy(work, tmp_path, resume=True, evaluate_every=2, save_every=9, keep=1, steps=9)
    assert best.is_dir()
    state, _ = load_state(tmp_path / "checkpoints/step-000000009")
    assert (state.score, state.best_score) == (4.5, 5.0)


def test_a_score_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    work = Toy()
    work.scores = [0.0, math.nan, 1.0]
    fit_toy(work, tmp_path, evaluate_every=3)
    best = Checkpoints(tmp_path / "checkpoints", keep=1).named("best")
    assert best is not None and best.name == "step-000000006"


def test_evaluation_does_not_touch_what_is_random(tmp_path: Path) -> None:
    class Random(Toy):
        def evaluate(self) -> Evaluation:
            assert not self.model.training and not torch.is_grad_enabled()
            torch.manual_seed(torch.seed() % 2**60)
            return Evaluation(results={}, score=None)

    wanted = undisturbed(tmp_path / "whole").weights()
    work = Random()
    fit_toy(work, tmp_path / "run", evaluate_every=1)
    assert same(work.weights(), wanted)


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_with_its_batch(tmp_path: Path) -> None:
    class Diverging(Toy):
        def loss(self, micro: Any, totals: Any) -> Any:
            loss, _ = super().loss(micro, totals)
            factor = math.nan if self.losses == 4 * MICROS + 2 else 1.0
            return loss * factor, {"loss": loss.detach() * factor}

    work = Diverging()
    with pytest.raises(TrainError) as caught:
        fit_toy(work, tmp_path)
    message = str(caught.value)
    path = tmp_path / "failed-step-5-process-0.safetensors"
    checkpoint = latest(tmp_path)
    assert message.startswith("step 5: loss nan, gradient norm ") and "\n" not in message
    assert str(path) in message and str(checkpoint) in message and "a lower lr" in message
    # The weights were not moved, and the checkpoint is that of step 3.
    saved = safetensors.numpy.load_file(path)
    for number, micro in enumerate(Toy().batch(4)):
        assert np.array_equal(saved[f"{number}.ids"], micro.batch.ids)
        assert np.array_equal(saved[f"{number}.offsets"], micro.batch.offsets)
        assert np.array_equal(saved[f"{number}.types"], micro.batch.types)
        for name, array in micro.arrays.items():
            assert np.array_equal(saved[f"{number}.{name}"], array)
    assert checkpoint is not None and load_state(checkpoint)[0].step == 3
    assert logged(tmp_path) == [2, 4]
    work = Toy()
    fit_toy(work, tmp_path, resume=True)
    assert same(work.weights(), undisturbed(tmp_path / "whole").weights())


def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(tmp_path: Path) -> None:
    class Diverging(Toy):
        def loss(self, micro: Any, totals: Any) -> Any:
            loss, parts = super().loss(micro, totals)
            # Finite itself, and without a finite slope.
            zero = self.model.out.bias * 0
            return loss + zero.sqrt().sum(), parts

    work = Diverging()
    before = work.weights()
    with pytest.raises(TrainError, match=r"step 1: loss \d.*, gradient norm (nan|inf)"):
        fit_toy(work, tmp_path, clip=None)
    assert same(work.weights(), before)


def test_weights_that_blow_up_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="allowed: finite numbers"):
        fit_toy(Toy(), tmp_path, lr=1e30, clip=None, warmup=0, schedule="constant", save_every=99)
    assert latest(tmp_path) is None


def test_memory_that_runs_out_is_said(tmp_path: Path) -> None:
    def watch(loss: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate 9 GiB")

    with pytest.raises(TrainError) as caught:
        fit_toy(Toy(watch=watch), tmp_path)
    assert "micro_tokens 16384: more than fits (CUDA out of memory. Tried)" in str(caught.value)


def test_a_log_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, record: Any) -> None:
        if record["step"] == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, record)

    real = loop.Log._write
    monkeypatch.setattr(loop.Log, "_write", full)
    with pytest.raises(CallError) as caught:
        fit_toy(Toy(), tmp_path)
    assert f"{tmp_path}: No space left on device; the last complete checkpoint is" in str(
        caught.value
    )
    assert "step-000000003; fix: make room, then go on with --resume" in str(caught.value)


def test_a_checkpoint_that_is_missing_or_damaged_is_said(tmp_path: Path) -> None:
    undisturbed(tmp_path)
    path = latest(tmp_path)
    assert path is not None
    whole = (path / "optimizer.safetensors").read_bytes()
    (path / "optimizer.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ModelError, match="step-000000006: damaged"):
        fit_toy(Toy(), tmp_path, resume=True)
    other = {"other|exp_avg": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(other, path / "optimizer.safetensors")
    with pytest.raises(ModelError, match=r"step-000000006: 'other\|exp_avg' of shape \(3,\)"):
        fit_toy(Toy(), tmp_path, resume=True)
    (path / "optimizer.safetensors").write_bytes(whole)
    record = json.loads((path / "training.json").read_text())
    (path / "training.json").write_text(json.dumps({**record, "recipe": None}))
    with pytest.raises(ModelError, match=r"training\.json: damaged"):
        fit_toy(Toy(), tmp_path, resume=True)
    (path / "training.json").unlink()
    with pytest.raises(ModelError, match=r"training\.json: No such file"):
        fit_toy(Toy(), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("steps", 0, "steps is 0; allowed: 1 or more"),
        ("batch_rows", 0, "batch_rows is 0"),
        ("micro_tokens", 0, "micro_tokens is 0"),
        ("save_every", 0, "save_every is 0"),
        ("log_every", -1, "log_every is -1"),
        ("keep", 0, "keep is 0"),
        ("evaluate_every", 0, "evaluate_every is 0; allowed: 1 or more"),
        ("precision", "float16", "precision is 'float16'; allowed: auto, float32, tf32, bfloat16"),
        ("device", "gpu", "device is 'gpu'; allowed: auto, cpu, cuda"),
        ("lr", -1.0, "lr is -1.0"),
    ],
)
def test_a_value_that_is_not_allowed(name: str, value: object, words: str) -> None:
    with pytest.raises(CallError) as caught:
        toy_config(**{name: value})
    assert words in str(caught.value)


def test_bfloat16_on_a_cpu(tmp_path: Path) -> None:
    half, whole = Toy(dropout=0.0), Toy(dropout=0.0)
    fit_toy(half, tmp_path / "half", precision="bfloat16")
    fit_toy(whole, tmp_path / "whole", precision="float32")
    assert 0 < furthest(half.weights(), whole.weights()) < 0.1
    assert all(value.dtype == torch.float32 for value in half.weights().values())


def test_the_peak_is_a_number_of_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert loop.peak(torch.device("cpu"), False) > 1e8


# --- patience -----------------------------------------------------------------------------------


def with_scores(*scores: float) -> Toy:
    work = Toy()
    work.scores = list(scores)
    return work


def test_patience_ends_a_run_and_keeps_the_best(tmp_path: Path) -> None:
    work = with_scores(0.0, 1.0, 3.0, 2.0, 3.0, 9.0)
    run = fit_toy(work, tmp_path, steps=9, evaluate_every=1, patience=2, log_every=3)
    assert (run.step, run.early, run.finished) == (4, True, True)
    assert (tmp_path / "checkpoints/best").read_text() == "step-000000002\n"
    assert (tmp_path / "checkpoints/latest").read_text() == "step-000000004\n"
    # The steps after the last line of the log are counted, too.
    assert run.tokens == 4 * 12 * 2
    assert [line["step"] for line in log_lines(tmp_path) if "loss" in line] == [3, 4]
    # Nothing is left to do.
    again = with_scores(9.0)
    run = fit_toy(again, tmp_path, steps=9, evaluate_every=1, patience=2, log_every=3, resume=True)
    assert (run.step, run.early, again.losses) == (4, True, 0)
    # With more patience it goes on.
    run = fit_toy(
        with_scores(1.0, 1.0, 5.0), tmp_path, steps=7, evaluate_every=1, patience=5, resume=True
    )
    assert (run.step, run.early) == (7, False)


def test_patience_is_counted_through_a_resumed_run(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"evaluate_every": 1, "patience": 3, "save_every": 1}
    fit_toy(with_scores(0.0, 3.0, 2.0, 1.0), tmp_path, steps=3, **settings)
    run = fit_toy(with_scores(2.0, 9.0), tmp_path, steps=9, resume=True, **settings)
    assert (run.step, run.early) == (4, True)


def test_the_first_look_can_be_left_out(tmp_path: Path) -> None:
    work = with_scores(1.0)
    run = fit(
        work,
        toy_config(),
        folder=tmp_path,
        recipe={},
        seed=1,
        group=work.group,
        resume=False,
        measure_first=False,
    )
    assert run.first is None and run.last is not None
