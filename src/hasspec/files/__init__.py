"""Files that are never half written: atomic replacement, and one writer at a time."""

from hasspec.files.atomic import replacing, write_atomically
from hasspec.files.lock import sole_writer

__all__ = ["replacing", "sole_writer", "write_atomically"]
