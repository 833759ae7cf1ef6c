"""Folders and files that are written whole or not at all, whenever a process or the power ends."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from enrobe.errors import CallError, EnrobeError


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` in one rename when the block ends well.

    A crash at any moment leaves either no folder or a complete one.
    """
    check_new(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise CallError(f"{folder}: cannot be written ({error.strerror})") from None
    try:
        yield work
        work.chmod(0o755)
        for path in work.iterdir():
            sync(path)
        sync(work)
        work.rename(folder)
        sync(folder.parent)
    except EnrobeError:
        raise
    except OSError as error:
        raise CallError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Put a folder that `write` makes in the place of an older one."""
    old = folder.with_name(f".{folder.name}")
    # Of a process that ended here.
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    write(folder)
    shutil.rmtree(old, ignore_errors=True)


def check_new(folder: Path) -> None:
    """Raise CallError where a folder to be written exists and is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CallError(f"{folder} exists and is not empty; name a new folder")


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, text: str) -> None:
    """Put a text file in the place of another: at any moment there is the old one or the new.

    Raises:
        OSError: it cannot be written; the old one stands.
    """
    temporary = path.with_name(f".{path.name}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
