"""Batches from processes are those of a thread; one that dies is told of."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from enrobe.errors import CallError, TrainError
from enrobe.train.ahead import batches_ahead
from enrobe.train.work import Micro
from tests.train.toys import Toy, fit_toy, same, toy_config


@pytest.mark.parametrize("loaders", [0, 1, 3])
def test_batches_come_in_order_and_all(loaders: int) -> None:
    made = Toy()
    with batches_ahead(made.batch, range(3, 12), loaders) as batches:
        for step, batch in zip(range(3, 12), batches, strict=True):
            wanted = made.batch(step)
            assert len(batch) == len(wanted)
            for one, other in zip(batch, wanted, strict=True):
                assert (one.arrays["x"] == other.arrays["x"]).all()


def test_a_run_with_loaders_is_bitwise_that_without(tmp_path: Path) -> None:
    plain, forked = Toy(), Toy()
    fit_toy(plain, tmp_path / "plain", loaders=0)
    fit_toy(forked, tmp_path / "forked", loaders=2)
    assert same(plain.weights(), forked.weights())


def test_a_run_that_stops_early_leaves_no_process(tmp_path: Path) -> None:
    def watch(loss: int) -> None:
        if loss == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    run = fit_toy(Toy(watch=watch), tmp_path / "run", loaders=2)
    assert not run.finished
    assert not multiprocessing.active_children()


def test_a_killed_process_is_told_of() -> None:
    def make(step: int) -> list[Micro]:
        if step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return []

    with (
        batches_ahead(make, range(5), 1) as batches,
        pytest.raises(TrainError, match=r"was killed .*; fix: fewer loaders"),
    ):
        list(batches)


def test_a_number_below_0_is_refused() -> None:
    with pytest.raises(CallError, match="loaders is -1; allowed: 0 or more"):
        toy_config(loaders=-1)
