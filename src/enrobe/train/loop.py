"""The one training loop: batches in, weights moved, state saved, whatever the task."""

import hashlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from enrobe.errors import CallError, EnrobeError, ModelError, TrainError, nearest, show
from enrobe.train.ahead import batches_ahead
from enrobe.train.group import Group
from enrobe.train.log import Log
from enrobe.train.optim import Optimizer, OptimizerConfig
from enrobe.train.state import LATEST, Checkpoints, State, load_state, save_arrays
from enrobe.train.work import Evaluation, Micro, Work

Precision = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]
# Settings that a run may be resumed with another value of: the steps done stay what they are.
CHANGEABLE = (
    *("steps", "evaluate_every", "patience", "save_every", "log_every", "keep", "micro_tokens"),
    "loaders",
    # where the data lie; what they are is known by its hashes
    *("files", "folder", "workers"),
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(OptimizerConfig):
    """How long, how wide and how often.

    Raises:
        CallError: a value is not allowed.
    """

    steps: int
    # updates of the weights
    batch_rows: int
    # rows of an update, over all processes
    micro_tokens: int = 16_384
    # that go through the model at once; bounds memory
    precision: Precision = "auto"
    # auto: bfloat16 on a GPU, float32 on a CPU
    device: Device = "auto"
    compile: bool | None = None
    # the layers, by torch.compile; None: on a GPU
    loaders: int | None = None
    # processes that prepare batches; None: 4 for a GPU; 0: a thread does it
    evaluate_every: int | None = None
    # steps between looks at held-out data; None: at the beginning and the end
    patience: int | None = None
    # evaluations in a row without a better score that end the run; None: all steps are done
    save_every: int = 500
    # steps
    log_every: int = 20
    # steps
    keep: int = 2
    # checkpoints beside the best

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "batch_rows", "micro_tokens", "save_every", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise CallError(f"{name} is {show(getattr(self, name))}; allowed: 1 or more")
        for name in ("evaluate_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CallError(f"{name} is {show(value)}; allowed: 1 or more")
        if self.loaders is not None and self.loaders < 0:
            raise CallError(f"loaders is {show(self.loaders)}; allowed: 0 or more")
        for name, allowed in (("precision", get_args(Precision)), ("device", get_args(Device))):
            value = getattr(self, name)
            if value not in allowed:
                hint = nearest(str(value), allowed)
                raise CallError(f"{name} is {show(value)}; allowed: {', '.join(allowed)}{hint}")


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a call of `fit` ended; `step` is below `steps` where something stopped it."""

    step: int
    steps: int
    first: Evaluation | None
    # before the first step; None where the run was resumed
    last: Evaluation | None
    # after the last step
    tokens: int
    # gone through in this call
    seconds: float
    # of training in this call
    early: bool = False
    # whether patience ended it

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: no signal stopped it."""
        return self.early or self.step == self.steps


def fit(
    work: Work,
    config: TrainConfig,
    *,
    folder: Path,
    recipe: Mapping[str, Any],
    seed: int,
    group: Group,
    resume: bool,
    lr_scales: Mapping[str, float] | None = None,
    measure_first: bool = True,
) -> Run:
    """Train, and leave checkpoints in `folder` from which `resume` goes on exactly.

    `lr_scales` are those of `Optimizer`; `measure_first` looks at held-out data before the first
    step, too. Ctrl-C and SIGTERM save and end the call after the step that they fall into; a second
    Ctrl-C ends it at once.

    Raises:
        CallError: a checkpoint or the log cannot be written, or the checkpoint to go on from does
            not belong to this recipe.
        ModelError: that checkpoint is damaged.
        TrainError: the loss or the gradient is not finite, and the batch is saved; or the device
            has not the memory.
    """
    optimizer = Optimizer(work.model, config, lr_scales)
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.keep)
    start, best, waited = 0, None, 0
    latest = checkpoints.named(LATEST) if resume else None
    if latest is not None:
        state, arrays = load_state(latest)
        check_recipe(state.recipe, recipe)
        if state.step > config.steps:
            raise CallError(f"steps is {config.steps}; {state.step} of the run are done already")
        work.read(latest / "model")
        try:
            optimizer.restore(arrays)
        except ModelError as error:
            raise ModelError(f"{latest}: {error}") from None
        start, best, waited = state.step, state.best_score, state.waited
    log = Log(folder if group.first else None, steps=config.steps, start=start)
    try:
        if latest is not None:
            log.say(f"going on after step {start}")
            if state.threads != torch.get_num_threads() and group.device.type == "cpu":
                log.say(
                    f"note: {torch.get_num_threads()} threads, {state.threads} before; sums are "
                    "rounded otherwise, so the result will not be bitwise the same"
                )
        loop = _Loop(work, config, folder, recipe, seed, group, optimizer, checkpoints, log)
        loop.best, loop.waited = best, waited
        return loop.run(start, measure_first=measure_first)
    except torch.OutOfMemoryError as error:
        raise TrainError(
            f"micro_tokens {config.micro_tokens}: more than fits ({str(error).splitlines()[0]}); "
            "fix: a smaller micro_tokens, then go on with --resume"
        ) from None
    except OSError as error:
        if isinstance(error, EnrobeError):
            raise
        what = f"{error.filename or folder}: {error.strerror or error}"
        raise CallError(f"{what}; {checkpoints.way_on()}") from None
    finally:
        log.close()


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


class _Loop:
    def __init__(
        self,
        work: Work,
        config: TrainConfig,
        folder: Path,
        recipe: Mapping[str, Any],
        seed: int,
        group: Group,
        optimizer: Optimizer,
        checkpoints: Checkpoints,
        log: Log,
    ) -> None:
        self.work, self.config, self.folder = work, config, folder
        self.recipe, self.seed, self.group = recipe, seed, group
        self.optimizer, self.checkpoints, self.log = optimizer, checkpoints, log
        self.best: float | None = None
        self.waited = 0
        cuda = group.device.type == "cuda"
        self.loaders = config.loaders if config.loaders is not None else 4 * cuda
        self.half = config.precision == "bfloat16" or (config.precision == "auto" and cuda)
        self.compiled = config.compile or (config.compile is None and cuda)
        if self.compiled:
            for layer in getattr(work.model, "layers", ()):
                layer.compile()
        self.peak = _peak(group.device, self.half)

    def run(self, start: int, *, measure_first: bool) -> Run:
        """Train from a step to the end, to a signal, or until patience is at its end."""
        config, step = self.config, start
        first = last = None
        early = self._has_waited()
        if start == 0 and measure_first:
            first = self._evaluate(0)
        stretch, tokens, seconds = _Stretch(), 0.0, 0.0

        def log_stretch() -> None:
            nonlocal stretch, tokens, seconds
            tokens, seconds = tokens + stretch.tokens, seconds + stretch.seconds
            self.log.step(step, stretch.numbers(self.peak * self.group.size))
            stretch = _Stretch()

        steps = range(step, step if early else config.steps)
        with (
            _signals() as signalled,
            batches_ahead(self.work.batch, steps, self.loaders) as batches,
        ):
            began = time.perf_counter()
            for micros in batches:
                stop = self._step(step, micros, stretch, signalled)
                step += 1
                more = step < config.steps
                stretch.seconds += time.perf_counter() - began
                if step % config.log_every == 0 or not more or stop:
                    log_stretch()
                evaluation = None
                if not more or (config.evaluate_every and step % config.evaluate_every == 0):
                    evaluation = last = self._evaluate(step)
                best = evaluation is not None and self._is_best(evaluation)
                early = evaluation is not None and self._has_waited()
                if best or stop or early or not more or step % config.save_every == 0:
                    self._save(step, evaluation)
                if stop or early:
                    break
                began = time.perf_counter()
            if stretch.steps:
                # Patience ended between two lines.
                log_stretch()
        return Run(
            step=step,
            steps=config.steps,
            first=first,
            last=last,
            tokens=int(tokens),
            seconds=seconds,
            early=early and step < config.steps,
        )

    def _step(
        self,
        step: int,
        micros: Sequence[Micro],
        stretch: "_Stretch",
        signalled: Callable[[], bool],
    ) -> bool:
        """One update; whether any process was told to stop."""
        work, group = self.work, self.group
        names = work.objectives
        counts = [sum(micro.counts.get(name, 0) for micro in micros) for name in names]
        tokens = sum(len(micro.batch.ids) for micro in micros)
        flops = sum(micro.flops for micro in micros)
        *sums, all_tokens, all_flops = group.sum([*counts, tokens, flops])
        totals = dict(zip(names, sums, strict=True))
        measured: dict[str, Tensor] = {}
        work.model.train()
        for number, micro in enumerate(micros):
            torch.manual_seed(_hash(self.seed, step, group.rank, number))
            with self._autocast():
                loss, parts = work.loss(micro, totals)
            loss.backward()  # type: ignore[no-untyped-call]
            for name, part in parts.items():
                measured[name] = (
                    measured[name] + part.detach() if name in measured else part.detach()
                )
        parameters = self.optimizer.parameters
        group.sum_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(
            parameters, math.inf if self.config.clip is None else self.config.clip
        )
        *here, size = torch.stack([*measured.values(), norm.to(torch.float32)]).tolist()
        *summed, stops = group.sum([*here, signalled()])
        values = dict(zip(measured, summed, strict=True))
        if not (math.isfinite(size) and all(map(math.isfinite, values.values()))):
            self._fail(step, micros, values, size)
        lr = self.config.lr_at(step, self.config.steps)
        self.optimizer.step(lr)
        # A name with a dot is a count that the loss alone needs.
        shares = {f"{n}_share": total / all_tokens for n, total in totals.items() if "." not in n}
        stretch.add({**values, "lr": lr, "gradient_norm": size, **shares}, all_tokens, all_flops)
        return stops > 0

    def _autocast(self) -> AbstractContextManager[object]:
        if not self.half:
            return nullcontext()
        return torch.autocast(self.group.device.type, dtype=torch.bfloat16)

    def _fail(
        self, step: int, micros: Sequence[Micro], values: Mapping[str, float], norm: float
    ) -> None:
        path = self.folder / f"failed-step-{step + 1}-process-{self.group.rank}.safetensors"
        arrays = {
            f"{number}.{name}": array
            for number, micro in enumerate(micros)
            for name, array in (
                ("ids", micro.batch.ids),
                ("offsets", micro.batch.offsets),
                ("types", micro.batch.types),
                *micro.arrays.items(),
            )
        }
        save_arrays(path, arrays)
        shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
        latest = self.checkpoints.named(LATEST)
        raise TrainError(
            f"step {step + 1}: {shown}, gradient norm {norm:g}; allowed: finite numbers; the batch "
            f"is in {path}, the last good checkpoint is {latest or 'none'}; "
            "fix: a lower lr, a longer warmup, or a smaller clip"
        )

    def _evaluate(self, step: int) -> Evaluation:
        self.work.model.eval()
        # Not compiled: rows of other lengths and no gradient would be compiled anew, for seconds.
        eager = torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()
        with torch.no_grad(), self._autocast(), eager:
            evaluation = self.work.evaluate()
        if evaluation.results:
            self.log.evaluation(step, evaluation.results)
        return evaluation

    def _is_best(self, evaluation: Evaluation) -> bool:
        score = evaluation.score
        if score is None or math.isnan(score) or (self.best is not None and score <= self.best):
            self.waited += score is not None
            return False
        self.best, self.waited = score, 0
        return True

    def _has_waited(self) -> bool:
        return self.config.patience is not None and self.waited >= self.config.patience

    def _save(self, step: int, evaluation: Evaluation | None) -> None:
        if self.group.first:
            state = State(
                step=step,
                recipe=self.recipe,
                score=evaluation.score if evaluation is not None else None,
                best_score=self.best,
                waited=self.waited,
                threads=torch.get_num_threads(),
            )
            self.checkpoints.save(state, self.work.write, self.optimizer.state())
        self.group.wait()


class _Stretch:
    """What is added up between two lines of the log."""

    def __init__(self) -> None:
        self.steps = 0
        self.seconds = self.tokens = self.flops = 0.0
        self.last: dict[str, float] = {}
        self.sums: dict[str, float] = {}

    def add(self, values: Mapping[str, float], tokens: float, flops: float) -> None:
        """One step's."""
        self.steps += 1
        self.tokens += tokens
        self.flops += flops
        self.last = dict(values)
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def numbers(self, peak: float) -> dict[str, float]:
        """Means over the steps; the learning rate is the last step's."""
        means = {name: value / self.steps for name, value in self.sums.items()}
        return {
            **means,
            "lr": self.last["lr"],
            "tokens_per_second": self.tokens / self.seconds,
            "utilisation": self.flops / self.seconds / peak,
        }


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C or SIGTERM is only noted; a second one acts as ever."""
    noted = False
    before: dict[int, Any] = {}

    def note(number: int, _: FrameType | None) -> None:
        nonlocal noted
        noted = True
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:
        # Not the main thread: its signals are not ours.
        pass
    try:
        yield lambda: noted
    finally:
        for taken, handler in before.items():
            signal.signal(taken, handler)


def _hash(*key: int) -> int:
    """A seed that no other step, process or part of a batch has."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _peak(device: torch.device, half: bool) -> float:
    """This device's own matrix products, operations a second: the best of a few."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if half else torch.float32
    # Random numbers: a GPU multiplies ones faster, since fewer bits change.
    matrix = torch.randn(size, size, device=device).to(dtype)
    best = math.inf
    for _ in range(10):
        began = time.perf_counter()
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
