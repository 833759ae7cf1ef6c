"""A run's log as a picture."""

import sys
from pathlib import Path

import pytest

from enrobe.errors import MissingExtraError
from enrobe.train import curves, pretrain
from enrobe.train.curves import draw
from enrobe.train.log import Log
from tests.train.toys import corpus_files, toy_recipe


def log(folder: Path, steps: int) -> Path:
    folder.mkdir()
    written = Log(folder, steps=steps, start=0)
    written.evaluation(0, {"near": {"loss": 3.0}, "far": {"loss": 4.0}})
    for step in range(1, steps + 1):
        written.step(step, {"loss": 1 / step})
    written.evaluation(steps, {"near": {"loss": 1.0}})
    written.close()
    return folder / "log.jsonl"


def test_runs_that_follow_each_other_are_one_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = pytest.importorskip("matplotlib.axes")
    drawn = {}

    def plot(
        self: object, x: tuple[int, ...], y: tuple[float, ...], *_: str, label: str, **__: object
    ):
        drawn[label] = list(zip(x, y, strict=True))
        return real(self, x, y, *_, label=label, **__)

    real = axes.Axes.plot
    monkeypatch.setattr(axes.Axes, "plot", plot)
    draw([log(tmp_path / "a", 2), log(tmp_path / "b", 3)], tmp_path / "curve.png")
    assert drawn == {
        "training": [(1, 1.0), (2, 0.5), (3, 1.0), (4, 0.5), (5, 0.333333)],
        "held-out: near": [(0, 3.0), (2, 1.0), (2, 3.0), (5, 1.0)],
        "held-out: far": [(0, 4.0), (2, 4.0)],
    }
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_an_empty_log_is_an_empty_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "log.jsonl").touch()
    draw([tmp_path / "log.jsonl"], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="matplotlib"):
        draw([], tmp_path / "curve.png")


def test_a_run_is_none_the_worse_without_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = corpus_files(tmp_path / "files")
    recipe = toy_recipe(files, tmp_path / "run", train__steps=2)

    def full(logs: object, picture: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(pretrain, "draw", full)
    result = pretrain.run(recipe, resume=False)
    assert result.finished and (result.model / "model.safetensors").is_file()
    monkeypatch.setattr(pretrain, "draw", curves.draw)
    pretrain.run(recipe, resume=True)
    pytest.importorskip("matplotlib")
    assert (tmp_path / "run/curve.png").is_file()
