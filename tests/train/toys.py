"""Small runs that the tests of training share, and processes to run them in."""

import json
import multiprocessing
import os
import random
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from enrobe.text.ragged import Ragged
from enrobe.train import loop, pretrain
from enrobe.train.group import Group
from enrobe.train.loop import Run, TrainConfig, fit
from enrobe.train.recipe import PretrainRecipe, make
from enrobe.train.work import Evaluation, Micro
from tests.support import random_documents, toy_tokenizer, write_txt

ALONE = Group(0, 1, torch.device("cpu"))
SHAPE = {
    "num_layers": 2,
    "hidden_size": 24,
    "num_heads": 3,
    "intermediate_size": 40,
    "max_positions": 34,
}


# --- a work without text ------------------------------------------------------------------------


class Net(nn.Module):
    """A matrix in a layer, for Muon, and one outside."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 5)])
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(5, 1)
        # Reached by no loss, as BERT's pooler in pretraining.
        self.spare = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.dropout(torch.tanh(self.layers[0](x))))
        return out.squeeze(-1)


class Toy:
    """A regression that the loop takes: batches follow from the step, dropout is on."""

    objectives = ("rows",)

    def __init__(
        self,
        *,
        dropout: float = 0.2,
        rows: int = 12,
        micro: int = 5,
        group: Group = ALONE,
        watch: Callable[[int], object] = lambda step: None,
    ) -> None:
        """`watch` is called with the number of losses that were computed before."""
        torch.manual_seed(3)
        self.model = Net(dropout)
        self.rows, self.micro, self.group, self.watch = rows, micro, group, watch
        self.losses = 0
        self.scores: list[float] | None = None

    def batch(self, step: int) -> list[Micro]:
        generator = np.random.default_rng(step)
        x = generator.standard_normal((self.rows, 6)).astype(np.float32)
        y = np.sin(x.sum(1)).astype(np.float32)
        # Shares of unlike size: the first process has a row, the second all others.
        bounds = [0, 1, self.rows] if self.group.size == 2 else [0, self.rows]
        mine = range(bounds[self.group.rank], bounds[self.group.rank + 1])
        groups = [mine[i : i + self.micro] for i in range(0, len(mine), self.micro)]
        return [
            Micro(
                batch=Ragged.from_rows([[1, 2]] * len(some)),
                counts={"rows": len(some)},
                flops=1.0,
                arrays={"x": x[some], "y": y[some]},
            )
            for some in groups
        ]

    def loss(
        self, micro: Micro, totals: Mapping[str, float]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        self.watch(self.losses)
        self.losses += 1
        error = self.model(torch.tensor(micro.arrays["x"])) - torch.tensor(micro.arrays["y"])
        loss = error.square().sum() / totals["rows"]
        return loss, {"loss": loss}

    def evaluate(self) -> Evaluation:
        if self.scores is None:
            return Evaluation(results={}, score=None)
        score = self.scores.pop(0)
        return Evaluation(results={"dev": {"score": score}}, score=score)

    def write(self, folder: Path) -> None:
        folder.mkdir()
        safetensors.torch.save_file(self.model.state_dict(), folder / "model.safetensors")

    def read(self, folder: Path) -> None:
        self.model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def toy_config(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {"steps": 6, "batch_rows": 12, "lr": 0.05, "warmup": 2, "log_every": 2}
    return TrainConfig(**{**values, "save_every": 3, **changes})


def fit_toy(work: Toy, folder: Path, *, resume: bool = False, seed: int = 1, **changes: Any) -> Run:
    folder.mkdir(exist_ok=True)
    config = toy_config(**changes)
    recipe = {"seed": seed, "train": vars(config)}
    return fit(
        work,
        config,
        folder=folder,
        recipe=recipe,
        seed=seed,
        group=work.group,
        resume=resume,
    )


# --- pretraining on a toy corpus ----------------------------------------------------------------


def tokenizer_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(toy_tokenizer().to_json())
    return folder


def corpus_files(folder: Path) -> Path:
    """A folder with a tokenizer, two files to train on and two to measure on."""
    folder.mkdir(exist_ok=True)
    tokenizer_folder(folder / "tokenizer")
    for seed, name in enumerate(("a", "b", "near", "far")):
        write_txt(folder / f"{name}.txt", random_documents(seed, 12))
    return folder


def recipe_values(files: Path, output: Path, /, **changes: Any) -> dict[str, Any]:
    """What a recipe file would hold; a change of `train__steps` is one of train.steps."""
    values: dict[str, Any] = {
        "output": str(output),
        "model": dict(SHAPE),
        "corpus": {
            "tokenizer": str(files / "tokenizer"),
            "length": 32,
            "sources": {
                "a": {"files": [str(files / "a.txt")], "weight": 2},
                "b": {"files": [str(files / "b.txt")]},
            },
            "heldout": {name: {"files": [str(files / f"{name}.txt")]} for name in ("near", "far")},
        },
        "train": {
            "steps": 6,
            "batch_rows": 4,
            "lr": 1e-2,
            "warmup": 2,
            "micro_tokens": 70,
            "log_every": 1,
            "save_every": 2,
        },
    }
    for key, value in changes.items():
        *tables, name = key.split("__")
        place = values
        for table in tables:
            place = place.setdefault(table, {})
        if value is None:
            place.pop(name, None)
        else:
            place[name] = value
    return values


def toy_recipe(files: Path, output: Path, /, **changes: Any) -> PretrainRecipe:
    return make(PretrainRecipe, recipe_values(files, output, **changes))


def toml(values: dict[str, Any], place: str = "") -> str:
    """Tables as TOML has them."""
    plain = {k: v for k, v in values.items() if not isinstance(v, dict)}
    out = "".join(f"{key} = {json.dumps(value)}\n" for key, value in plain.items())
    for key, value in values.items():
        if isinstance(value, dict):
            out += f"[{place}{key}]\n{toml(value, f'{place}{key}.')}"
    return out


def weights(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def furthest(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def log_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# --- processes ----------------------------------------------------------------------------------

# Forked from one that has imported all this: a process costs no time to start.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.train.toys", "torch.utils.tensorboard"])


def start(job: Callable[..., object], *arguments: Any, **environment: str) -> BaseProcess:
    process = _CONTEXT.Process(target=_begin, args=(job, arguments, environment))
    process.start()
    return process


def _begin(job: Callable[..., object], arguments: Sequence[Any], values: dict[str, str]) -> None:
    os.environ.update(values)
    torch.set_num_threads(1)
    os.fsync = lambda handle: None
    loop.peak = lambda device, half: 1e9
    pretrain.draw = lambda logs, picture: None
    # The parent's, of pytest, is none of ours.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    job(*arguments)


def start_two(job: Callable[..., object], *arguments: Any) -> list[BaseProcess]:
    """Two processes as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [
        start(
            job,
            *arguments,
            WORLD_SIZE="2",
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in range(2)
    ]


def join(*processes: BaseProcess) -> list[int | None]:
    """Their exit codes, once all have ended."""
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()
            raise AssertionError("a process did not end")
    return [process.exitcode for process in processes]


def pretrain_job(recipe: PretrainRecipe, resume: bool) -> None:
    pretrain.run(recipe, resume=resume)


def chance(seed: int) -> random.Random:
    print("seed", seed)
    return random.Random(seed)


def toy_job(folder: Path, changes: dict[str, Any], stop: int | None, resume: bool) -> None:
    """One of two processes that fit the toy; told to stop at the loss of this number."""
    group = Group.join("cpu")

    def watch(step: int) -> None:
        if step == stop and group.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    work = Toy(dropout=0.0, group=group, watch=watch)
    try:
        fit_toy(work, folder, resume=resume, **changes)
    finally:
        group.leave()
    safetensors.torch.save_file(work.weights(), folder / f"{group.rank}.safetensors")


def signalled_twice(folder: Path) -> None:
    def watch(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    fit_toy(Toy(watch=watch), folder)


def evaluate_job(recipe: PretrainRecipe, folder: Path) -> None:
    """What two processes measure together."""
    result = pretrain.run(recipe, resume=False)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(dict(result.after)))
