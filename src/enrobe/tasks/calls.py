"""What the model's methods take and give: arguments checked, errors raised or collected."""

from collections.abc import Callable, Sequence
from operator import index as whole
from typing import Any, Literal, NoReturn, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from enrobe.errors import CallError, TextError, show

Array = npt.NDArray[np.float32]
Errors = Literal["raise", "collect"]
Result = TypeVar("Result")


def as_texts(texts: str | Sequence[str]) -> list[str]:
    """Texts as a list; a string is a list of one."""
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes | dict) or not hasattr(texts, "__iter__"):
        raise CallError(f"texts is {show(texts)}; allowed: a string or a sequence of strings")
    return list(texts)


def settle(
    texts: Sequence[str],
    found: Sequence[Result | TextError],
    errors: Errors,
    failed: Callable[[str, TextError], Result],
) -> list[Result]:
    """What was found for each text, with its error raised, or made a result by `failed`."""
    check_errors(errors)
    out: list[Result] = []
    for index, (text, item) in enumerate(zip(texts, found, strict=True)):
        if not isinstance(item, TextError):
            out.append(item)
        elif errors == "collect":
            out.append(failed(text, item))
        else:
            raise_error(index, item, len(texts))
    return out


def raise_error(index: int, error: TextError, count: int) -> NoReturn:
    """Raise a text's error, with its number where there are several."""
    raise TextError(f"text {index}: {error}" if count > 1 else str(error))


def check_errors(errors: str) -> None:
    """Raise CallError for an unknown way with errors."""
    if errors not in get_args(Errors):
        raise CallError(f"errors is {show(errors)}; allowed: {', '.join(get_args(Errors))}")


def as_spans(spans: Sequence[Any]) -> list[list[tuple[int, int]]]:
    """Lists of pairs of whole numbers, or CallError."""
    try:
        return [[(whole(start), whole(end)) for start, end in one] for one in spans]
    except (TypeError, ValueError):
        raise CallError(
            f"spans is {show(spans)}; allowed: for each text a list of (start, end)"
        ) from None


def as_matrix(
    value: str | Sequence[str] | Array, embed: Callable[[str | Sequence[str]], Array]
) -> Array:
    """Vectors (N, D) of float32: those given, or those of the texts given; or CallError."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "UO":
        value = value.tolist()
    if not isinstance(value, np.ndarray):
        return embed(value)
    if value.ndim != 2 or value.dtype.kind not in "fiu":
        got = f"an array {value.shape} of {value.dtype}"
        raise CallError(f"similarity takes texts or an array (N, D) of numbers, not {got}")
    return np.asarray(value, np.float32)
