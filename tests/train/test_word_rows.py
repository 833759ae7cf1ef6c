"""Training of the used words' rows alone: the same steps for these, and none for the others."""

from pathlib import Path

import numpy as np
import pytest
import torch

from enrobe import checkpoint
from enrobe.nn.heads import Model
from enrobe.train import finetune
from enrobe.train.word_rows import WordRows, train_used_words
from tests.train.finetune_toys import labelled, model_folder, recipe, task

USED = np.array([0, 2, 3, 7, 11, 40], np.int64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("base") / "model", dropout=0.0)


def one(folder: Path, used: np.ndarray | None) -> Model:
    model = Model.from_checkpoint(checkpoint.read(folder))
    if used is not None:
        train_used_words(model, used)
    return model


def hidden(model: Model, ids: list[int]) -> torch.Tensor:
    row = torch.tensor(ids)
    return model(row, np.array([0, 2, len(ids)]), torch.zeros_like(row), layers=(2,)).hidden[2]


def test_steps_are_those_of_the_whole_table(folder: Path) -> None:
    whole, part = one(folder, None), one(folder, USED)
    assert isinstance(part.embeddings["word"], WordRows)
    names = {name: tuple(p.shape) for name, p in whole.named_parameters()}
    names["embeddings.word.weight"] = (len(USED), names["embeddings.word.weight"][1])
    assert {name: tuple(p.shape) for name, p in part.named_parameters()} == names
    # Without decay, a row that has no gradient does not move.
    for model in (whole, part):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
        for ids in ([0, 7, 11, 2], [3, 3, 40, 2]):
            hidden(model, ids).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, value in whole.state_dict().items():
        assert torch.allclose(part.state_dict()[name], value, atol=1e-6), name
    # What no row of the run has is read as it is.
    with torch.inference_mode():
        assert torch.allclose(hidden(part, [1, 60, 7]), hidden(whole, [1, 60, 7]), atol=1e-5)


def test_its_state_is_the_whole_table_both_ways(folder: Path) -> None:
    given = checkpoint.read(folder).tensors["embeddings.word.weight"]
    model = one(folder, USED)
    name = "embeddings.word.weight"
    assert np.array_equal(model.state_dict()[name].numpy(), given)
    other = torch.randn(given.shape, generator=torch.Generator().manual_seed(1))
    model.load_state_dict({**model.state_dict(), name: other})
    assert torch.equal(model.state_dict()[name], other)
    assert torch.equal(model.get_parameter(name), other[USED])


def test_where_it_would_save_little_or_be_wrong_nothing_is_done(folder: Path) -> None:
    table = Model.from_checkpoint(checkpoint.read(folder)).embeddings["word"]
    model = one(folder, np.arange(len(table.weight)))  # type: ignore[arg-type]
    assert not isinstance(model.embeddings["word"], WordRows)
    frozen = Model.from_checkpoint(checkpoint.read(folder))
    frozen.get_parameter("embeddings.word.weight").requires_grad_(False)
    train_used_words(frozen, USED)
    assert not isinstance(frozen.embeddings["word"], WordRows)


def test_words_that_no_text_has_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    path = labelled(tmp_path, "classify")
    job = recipe(folder, tmp_path / "run", {"x": task("classify", path)}, epochs=2)
    made = finetune.run(job, resume=False).model
    before, after = (
        checkpoint.read(place).tensors["embeddings.word.weight"] for place in (folder, made)
    )
    moved = (before != after).any(1)
    assert 0 < moved.sum() < 0.8 * len(moved)
