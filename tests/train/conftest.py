"""What every test of training has."""

import os

import pytest
import torch

from enrobe.train import loop, pretrain


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the disk (a killed process loses nothing that it has written), without
    measuring the machine or drawing, and in one thread: more lose time where a model is tiny.
    """
    torch.set_num_threads(1)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(loop, "peak", lambda device, half: 1e9)
    monkeypatch.setattr(pretrain, "draw", lambda logs, picture: None)
