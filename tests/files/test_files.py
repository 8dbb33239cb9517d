"""Files appear whole or not at all, and a folder has one writer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hasspec.files import replacing, sole_writer, write_atomically


def test_written_whole(tmp_path):
    file = tmp_path / "a.json"
    write_atomically(file, "ä\n")
    write_atomically(tmp_path / "b.bin", b"\x00\xff")
    assert file.read_bytes() == "ä\n".encode()
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_error_leaves_what_was_there(tmp_path):
    file = tmp_path / "a"
    write_atomically(file, "old")
    with pytest.raises(RuntimeError), replacing(file) as partial:
        partial.write_text("new, but")
        raise RuntimeError
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path):
    file = tmp_path / "a"
    write_atomically(file, "old")
    with pytest.raises(ValueError, match="no space is left to write .*a; what was"):  # noqa: SIM117
        with replacing(file) as partial:
            partial.symlink_to("/dev/full")
            partial.write_bytes(b"new" * 10_000)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_second_process_is_refused_and_a_later_one_is_not(tmp_path):
    program = (
        "import sys; from pathlib import Path; from hasspec.files import sole_writer\n"
        "with sole_writer(Path(sys.argv[1])): print('wrote')"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with sole_writer(tmp_path):
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "being written by another process" in refused.stderr
    assert "wrote" not in refused.stdout
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "wrote\n"
