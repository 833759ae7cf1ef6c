"""Every error that Enrobe raises on purpose.

    EnrobeError
    ├── CallError (ValueError)          an argument or a file that was named is wrong
    ├── TextError (ValueError)          one text cannot be processed; the others can
    ├── ModelError (ValueError)         a model folder, or a file in it, cannot be used
    ├── TrainError                      training cannot go on
    ├── RefusedError                    a result is worse than it may be; nothing was written
    ├── HubError (OSError)              a model could not be fetched from the hub
    └── MissingExtraError (ImportError) an optional dependency is not installed

Each message is one line: what is wrong, what was got, what is allowed, how to fix it.
Mistakes of our own are `assert`s, and show as tracebacks.
"""

from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST = 60


def show(value: object, limit: int = _LONGEST) -> str:
    """`repr` on one line, shortened in the middle, safe to print whatever the value holds."""
    # A user's value may be a text of a million characters: cut before escaping.
    text = ascii(value[: 2 * limit]) if isinstance(value, str) else ascii(value)
    text = text if not isinstance(value, str) or not _printable(value) else f"'{value}'"
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}…{text[-limit // 2 + 1 :]}"


def _printable(value: str) -> bool:
    return len(value) < 2 * _LONGEST and value.isprintable() and "'" not in value


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'X'?` when a known name is close to `name`, else an empty string."""
    found = get_close_matches(name, list(known), n=1)
    return f"; did you mean '{found[0]}'?" if found else ""


class EnrobeError(Exception):
    """The root: `except enrobe.EnrobeError` catches all of them."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class CallError(EnrobeError, ValueError):
    """An argument or a file that was named is wrong."""


class TextError(EnrobeError, ValueError):
    """One text cannot be processed; the others can."""


class ModelError(EnrobeError, ValueError):
    """A model folder, or a file in it, cannot be used."""


class TrainError(EnrobeError):
    """Training cannot go on."""


class RefusedError(EnrobeError):
    """A result is further from its model than it may be, and was not written."""


class HubError(EnrobeError, OSError):
    """A model could not be fetched from the hub."""


class MissingExtraError(EnrobeError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed; fix: pip install 'enrobe[{extra}]'"
        )
