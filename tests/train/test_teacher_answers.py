"""A teacher's answers: the same from the file as from the model, whatever ended in between."""

import json
from pathlib import Path

import numpy as np
import pytest

from enrobe.config import HeadConfig
from enrobe.engines.torch import TorchEngine
from enrobe.errors import ModelError
from enrobe.nn.heads import Model
from enrobe.train import teacher_answers
from enrobe.train.supervised import TrainRow
from enrobe.train.teacher_answers import Answers, head_answers, key_of
from tests.support import random_rows
from tests.train.finetune_toys import model_folder

SIZES = [3, 0, 2, 5, 1, 4, 2]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_answers, "_BLOCK", 2)


class Source:
    """Answers that follow from the row's number; stops before a block that is too many."""

    def __init__(self, most: int = 99) -> None:
        self.blocks: list[range] = []
        self._most = most

    def __call__(self, block: range) -> list[np.ndarray]:
        if len(self.blocks) == self._most:
            raise KeyboardInterrupt
        self.blocks.append(block)
        return [np.arange(SIZES[i], dtype=np.float32) + 10 * i for i in block]


def check(answers: Answers) -> None:
    for row, size in enumerate(SIZES):
        assert answers[row].tolist() == [10 * row + n for n in range(size)]


def test_what_is_kept_is_not_computed_again(tmp_path: Path) -> None:
    source = Source()
    first = Answers(tmp_path / "new", "k", SIZES, source)
    check(first)
    assert first.computed == 7 and len(source.blocks) == 4
    again = Answers(tmp_path / "new", "k", SIZES, source)
    check(again)
    assert again.computed == 0 and len(source.blocks) == 4


@pytest.mark.parametrize("torn", [b"", b"xyz", b"\0" * 40])
def test_it_goes_on_after_the_last_complete_block(torn: bytes, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Answers(tmp_path, "k", SIZES, Source(most=2))
    # A block that was being written when the process ended.
    with (tmp_path / "k.f32").open("ab") as file:
        file.write(torn)
    source = Source()
    check(Answers(tmp_path, "k", SIZES, source))
    assert source.blocks == [range(4, 6), range(6, 7)]


def test_a_file_that_is_shorter_than_it_says_is_made_anew(tmp_path: Path) -> None:
    Answers(tmp_path, "k", SIZES, Source())
    (tmp_path / "k.f32").write_bytes(b"1234")
    source = Source()
    check(Answers(tmp_path, "k", SIZES, source))
    assert len(source.blocks) == 4


@pytest.mark.parametrize("rows", [3, -1, 8, "7", True])
def test_damage_is_an_error(rows: object, tmp_path: Path) -> None:
    Answers(tmp_path, "k", SIZES, Source())
    (tmp_path / "k.json").write_text(json.dumps({"rows": rows}))
    with pytest.raises(ModelError, match="damaged; fix: delete it"):
        Answers(tmp_path, "k", SIZES, Source())


def test_a_name_follows_from_all_that_is_asked() -> None:
    a, b = np.array([1, 2]), np.array([3])
    names = [
        key_of("t", ["x", a, b]),
        key_of("u", ["x", a, b]),
        key_of("t", ["x", a]),
        key_of("t", ["x", b, a]),
        key_of("t", ["x", np.array([1, 2, 3])]),
        key_of("t", ["xy", a, b]),
    ]
    assert len(set(names)) == 6 and key_of("t", ["x", a, b]) == names[0]


def test_all_heads_of_a_teacher_in_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from enrobe import checkpoint

    read = checkpoint.read(model_folder(tmp_path / "model"))
    heads = {
        "a": HeadConfig(kind="classify", labels=("x", "y", "z")),
        "b": HeadConfig(kind="tag", labels=("O", "B-i")),
        "c": HeadConfig(kind="answer"),
    }
    model = Model(read.config, heads).eval()
    engine = TorchEngine.around(model)
    rows = []
    for number, ids in enumerate(random_rows(5, (3, 20), 283)):
        places = np.arange(1, len(ids) - 1)
        asked = ["a", "b", "c"][: 1 + number % 3]
        targets = {name: np.zeros(1) for name in asked}
        rows.append(TrainRow(ids, np.zeros_like(ids), places, targets))
    names = {"a": "a", "b": "b", "c": "c"}
    found = head_answers(engine, "hash", rows, names, tmp_path / "kept")
    monkeypatch.setattr(teacher_answers, "run_heads", lambda *_: pytest.fail("computed again"))
    again = head_answers(engine, "hash", rows, names, tmp_path / "kept")
    import torch

    for row, one, two in zip(rows, found, again, strict=True):
        assert set(one) == set(row.targets)
        with torch.inference_mode():
            logits = model(
                torch.from_numpy(row.ids),
                np.array([0, len(row.ids)]),
                torch.from_numpy(row.types),
                heads=list(row.targets),
            ).heads
        for name in one:
            expected = logits[name].numpy()
            if name == "a":
                expected = expected[0]
            else:
                expected = expected[np.append(0, row.places) if name == "c" else row.places]
            assert one[name].shape == expected.shape and np.array_equal(one[name], two[name])
            assert np.allclose(one[name], expected, atol=1e-5)
