"""Students: which layers are taken, what they begin with, what cannot be."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModel

from enrobe import checkpoint
from enrobe.errors import CallError
from enrobe.train.distil_recipe import StudentTable
from enrobe.train.student import chosen_layers, layer_pairs, student_of
from tests.train.finetune_toys import model_folder


def test_layers_are_spread_evenly_from_the_first_to_the_last() -> None:
    assert chosen_layers(6, 12) == (1, 3, 5, 8, 10, 12)  # DistilBERT's
    assert chosen_layers(3, 6) == (1, 4, 6)
    assert chosen_layers(None, 6) == chosen_layers(3, 6)
    assert chosen_layers(None, 1) == (1,)
    for count in range(1, 30):
        for some in range(2, count + 1):
            expected = 1 + np.floor(np.linspace(0, count - 1, some) + 0.5 + 1e-9).astype(int)
            assert chosen_layers(some, count) == tuple(expected.tolist())


def test_layers_of_hidden_states_end_the_same_share() -> None:
    assert layer_pairs(None, 3, 6) == ((1, 2), (2, 4), (3, 6))
    assert layer_pairs(None, 4, 12) == ((1, 3), (2, 6), (3, 9), (4, 12))
    assert layer_pairs(None, 2, 3) == ((1, 2), (2, 3))
    assert layer_pairs(((0, 0), (2, 6)), 3, 6) == ((0, 0), (2, 6))
    with pytest.raises(CallError, match=r"\[4, 6\]; allowed: 0 \(the embeddings\) to 3"):
        layer_pairs(((4, 6),), 3, 6)


def test_a_student_of_all_layers_is_its_teacher(tmp_path: Path) -> None:
    teacher = checkpoint.read(model_folder(tmp_path / "teacher"))
    same = student_of(teacher, StudentTable(layers=2))
    assert same.config == teacher.config
    assert all(np.array_equal(same.tensors[n], v) for n, v in teacher.tensors.items())


def test_a_layer_that_is_taken_computes_what_it_did(tmp_path: Path) -> None:
    """transformers' own model with the layers cut out of its list gives the same vectors."""
    import torch

    teacher = checkpoint.read(model_folder(tmp_path / "teacher"))
    student = student_of(teacher, StudentTable(layers=(2,)))
    checkpoint.write(tmp_path / "student", config=student.config, heads={}, tensors=student.tensors)
    ours = AutoModel.from_pretrained(tmp_path / "student", add_pooling_layer=False).eval()
    theirs = AutoModel.from_pretrained(tmp_path / "teacher", add_pooling_layer=False).eval()
    del theirs.encoder.layer[0]
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        assert torch.equal(ours(ids).last_hidden_state, theirs(ids).last_hidden_state)


def test_a_new_shape_keeps_the_teachers_proportions(tmp_path: Path) -> None:
    teacher = checkpoint.read(model_folder(tmp_path / "teacher"))
    student = student_of(teacher, StudentTable(layers=1, hidden_size=20))
    sizes = (student.config.num_layers, student.config.hidden_size, student.config.num_heads)
    assert (*sizes, student.config.intermediate_size) == (1, 20, 2, 36)
    assert student.config.vocab_size == teacher.config.vocab_size and not student.tensors


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": 3}, "layers is 3; the teacher has 2"),
        ({"layers": (1, 3)}, "layers has 3; the teacher's are 1 to 2"),
        ({"hidden_size": 30, "num_heads": 4}, "hidden_size 30 is not a multiple of num_heads 4"),
        ({"layers": 0}, "layers is 0; allowed: 1 or more"),
        ({"layers": (2, 1)}, "allowed: each once, ascending"),
        ({"layers": (1, 2), "hidden_size": 20}, "fix: layers = 2"),
        ({"model": "x", "layers": 1}, "leave out one of the two"),
    ],
)
def test_what_cannot_be_is_said(values: dict[str, object], message: str, tmp_path: Path) -> None:
    teacher = checkpoint.read(model_folder(tmp_path / "teacher"))
    with pytest.raises(CallError) as caught:
        student_of(teacher, StudentTable(**values))  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_a_given_student_has_the_teachers_tokenizer(tmp_path: Path) -> None:
    teacher = checkpoint.read(model_folder(tmp_path / "teacher"))
    other = model_folder(tmp_path / "other")
    assert student_of(teacher, StudentTable(model=str(other))).folder == other
    file = tmp_path / "other/tokenizer.json"
    known = json.loads(file.read_text())
    vocab = known["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    file.write_text(json.dumps(known))
    with pytest.raises(CallError, match="its tokenizer is not the teacher's"):
        student_of(teacher, StudentTable(model=str(other)))
