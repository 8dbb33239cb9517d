"""One process writes a folder at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for writing; a process that ends, however it ends, lets it go.

    Raises:
        ValueError: another process is writing there.
    """
    try:
        with FileLock(folder / ".writer.lock", timeout=0):
            yield
    except Timeout as error:
        raise ValueError(
            f"{folder} is being written by another process; wait for it, stop it, or write to "
            "another folder"
        ) from error
