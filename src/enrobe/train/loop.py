"""The one training loop: batches in, weights moved, state saved, whatever the task."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from enrobe.errors import CallError, EnrobeError, ModelError, TrainError, nearest, show
from enrobe.train.ahead import batches_ahead
from enrobe.train.cosines import Cosines, gradient_cosines
from enrobe.train.group import Group
from enrobe.train.log import Log
from enrobe.train.memory import keep_freed_memory
from enrobe.train.optim import Optimizer, OptimizerConfig
from enrobe.train.signals import noted_signals
from enrobe.train.state import LATEST, Checkpoints, State, check_recipe, load_state, save_arrays
from enrobe.train.stretch import Stretch, peak
from enrobe.train.work import Evaluation, Micro, Work

Precision = Literal["auto", "float32", "tf32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]


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
    # auto: bfloat16 on a GPU, float32 on a CPU; tf32: float32, its products rounded
    device: Device = "auto"
    compile: bool | None = None
    # the layers, by torch.compile; None: on a GPU
    loaders: int | None = None
    # processes that prepare batches; None: 4 for a GPU; 0: a thread does it
    gradient_checkpointing: bool = False
    # layers are computed again for their gradients: less memory, about a third more time
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
    before: Callable[[int], object] | None = None,
    cosines: Cosines | None = None,
) -> Run:
    """Train, and leave checkpoints in `folder` from which `resume` goes on exactly.

    `lr_scales` are those of `Optimizer`; `measure_first` looks at held-out data before the first
    step, too; `before` is called with each step's number before it, and may say which parameters
    need a gradient in it; `cosines` are measured besides, and change nothing.

    Ctrl-C and SIGTERM save and end the call after the step that they fall into; a second Ctrl-C
    ends it at once.

    Raises:
        CallError: a checkpoint or the log cannot be written, or the checkpoint to go on from does
            not belong to this recipe.
        ModelError: that checkpoint is damaged.
        TrainError: the loss or the gradient is not finite, and the batch is saved; or the device
            has not the memory.
    """
    keep_freed_memory()
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
        loop.before, loop.cosines = before, cosines
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


@contextmanager
def _products(precision: Precision) -> Iterator[None]:
    """Let products of float32 numbers round them, where that is asked for and the device can."""
    before = torch.get_float32_matmul_precision()
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


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
        self.before: Callable[[int], object] | None = None
        self.cosines: Cosines | None = None
        cuda = group.device.type == "cuda"
        self.loaders = config.loaders if config.loaders is not None else 4 * cuda
        self.half = config.precision == "bfloat16" or (config.precision == "auto" and cuda)
        self.compiled = config.compile or (config.compile is None and cuda)
        if self.compiled:
            for layer in getattr(work.model, "layers", ()):
                layer.compile()
        self.peak = peak(group.device, self.half)

    def run(self, start: int, *, measure_first: bool) -> Run:
        """Train from a step to the end, to a signal, or until patience is at its end."""
        config, step = self.config, start
        first = last = None
        early = self._has_waited()
        if start == 0 and measure_first:
            first = self._evaluate(0)
        stretch, tokens, seconds = Stretch(), 0.0, 0.0

        def log_stretch() -> None:
            nonlocal stretch, tokens, seconds
            tokens, seconds = tokens + stretch.tokens, seconds + stretch.seconds
            self.log.step(step, stretch.numbers(self.peak * self.group.size))
            stretch = Stretch()

        steps = range(step, step if early else config.steps)
        with (
            _products(config.precision),
            noted_signals() as signalled,
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
        stretch: "Stretch",
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
        if self.before is not None:
            self.before(step)
        if self.cosines is not None and step % self.cosines.every == 0:
            self._measure_cosines(step, micros, totals, self.cosines)
        for number, micro in enumerate(micros):
            loss, parts = self._loss(step, number, micro, totals)
            loss.backward()  # type: ignore[no-untyped-call]
            for name, part in parts.items():
                measured[name] = (
                    measured[name] + part.detach() if name in measured else part.detach()
                )
        group.sum_gradients(self.optimizer.parameters)
        norm = self.optimizer.clip(self.config.clip)
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

    def _loss(
        self, step: int, number: int, micro: Micro, totals: Mapping[str, float]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """That of a part of the batch; computed twice it is the same, dropout included."""
        torch.manual_seed(_hash(self.seed, step, self.group.rank, number))
        with self._autocast():
            return self.work.loss(micro, totals)

    def _measure_cosines(
        self, step: int, micros: Sequence[Micro], totals: Mapping[str, float], asked: Cosines
    ) -> None:
        def losses(number: int, micro: Micro) -> dict[str, Tensor]:
            parts = self._loss(step, number, micro, totals)[1]
            return {name: parts[f"{name}_loss"] for name in asked.names}

        # What is frozen at this step has no gradient.
        shared = [parameter for parameter in asked.parameters if parameter.requires_grad]
        found = gradient_cosines(
            [partial(losses, number, micro) for number, micro in enumerate(micros)],
            shared,
            self.group,
            asked.names,
        )
        if found:
            self.log.cosines(step + 1, found)

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


def _hash(*key: int) -> int:
    """A seed that no other step, process or part of a batch has."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
