"""Fill several places of a row together.

Places are filled one after another, each time the one of which the model is most sure (as
Mask-Predict does: Ghazvininejad et al. 2019), given what already stands. A filling's score is the
chain-rule product along that order s,

    log p(x_1 .. x_n | row) = sum_j log p(x_s(j) | row, x_s(1) .. x_s(j-1)).

Legend: V vocabulary, M open places of one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from enrobe.engines.base import Array, Engine
from enrobe.tasks.masked import MaskedRow, run_masked, top
from enrobe.text.ragged import Ids


@dataclass(frozen=True, eq=False)
class Blank:
    """A row with open places, and what may stand there.

    forced: the one id to score at each place. allowed: (V,) of booleans for each place. Neither:
    the whole vocabulary.
    """

    row: MaskedRow
    forced: tuple[int, ...] | None = None
    allowed: tuple[npt.NDArray[np.bool_], ...] | None = None


@dataclass(frozen=True)
class Filling:
    """One id a place, in the order of the places, and the natural log of their probability."""

    ids: tuple[int, ...]
    log_probability: float


@dataclass(frozen=True, eq=False)
class _State:
    blank: int
    ids: Ids
    open: tuple[int, ...]
    # which of the blank's places are open
    log_probability: float


def search(engine: Engine, blanks: Sequence[Blank], beam: int) -> list[list[Filling]]:
    """The best fillings of each blank, best first, at most `beam` of them.

    All blanks advance together, so that each step is one run over all of their rows.
    """
    done: list[list[_State]] = [[] for _ in blanks]
    live = [_State(n, b.row.ids, tuple(range(len(b.row.at))), 0.0) for n, b in enumerate(blanks)]
    while live:
        grown: list[list[_State]] = [[] for _ in blanks]
        for state in _step(engine, blanks, live, beam):
            grown[state.blank].append(state)
        live = []
        for n, states in enumerate(grown):
            best = _prune(states, beam)
            if best and not best[0].open:
                done[n] = best
            else:
                live += best
    return [
        [
            Filling(tuple(int(i) for i in state.ids[blank.row.at]), state.log_probability)
            for state in states
        ]
        for blank, states in zip(blanks, done, strict=True)
    ]


def _step(
    engine: Engine, blanks: Sequence[Blank], live: Sequence[_State], beam: int
) -> list[_State]:
    """Fill one more place of every state, in all the ways that can still win."""
    # States that look alike to the model (targets of one length, say) share a row.
    sharing: dict[tuple[bytes, bytes], list[_State]] = {}
    rows: list[MaskedRow] = []
    for state in live:
        at = blanks[state.blank].row.at[list(state.open)]
        key = (state.ids.tobytes(), at.tobytes())
        if key not in sharing:
            rows.append(MaskedRow(state.ids, at))
        sharing.setdefault(key, []).append(state)
    groups = list(sharing.values())

    def grow(index: int, values_MV: Array) -> list[_State]:
        surest = int(values_MV.max(axis=1).argmax())
        values_V = values_MV[surest]
        out = []
        for state in groups[index]:
            place = state.open[surest]
            for choice in _choices(blanks[state.blank], place, values_V, beam):
                ids = state.ids.copy()
                ids[rows[index].at[surest]] = choice
                still = state.open[:surest] + state.open[surest + 1 :]
                total = state.log_probability + float(values_V[choice])
                out.append(_State(state.blank, ids, still, total))
        return out

    return [state for states in run_masked(engine, rows, grow) for state in states]


def _choices(blank: Blank, place: int, values_V: Array, beam: int) -> Sequence[int] | Ids:
    if blank.forced is not None:
        return (blank.forced[place],)
    if blank.allowed is not None:
        among = np.flatnonzero(blank.allowed[place])
        return among[top(values_V[among], beam)]
    return top(values_V, beam)


def _prune(states: Sequence[_State], beam: int) -> list[_State]:
    """The best states; of those that two orders of filling reached, the better one."""
    best: dict[tuple[bytes, tuple[int, ...]], _State] = {}
    for state in states:
        key = (state.ids.tobytes(), state.open)
        if key not in best or best[key].log_probability < state.log_probability:
            best[key] = state
    ranked = sorted(best.values(), key=lambda s: (-s.log_probability, tuple(s.ids)))
    return ranked[:beam]
