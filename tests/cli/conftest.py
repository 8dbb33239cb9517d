"""A tiny target and head on disk, prompts, and a way to run the command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from hasspec.cli.main import app
from hasspec.data import Conversation, TokenStore
from hasspec.data.store import StoreMetadata
from hasspec.draft import DraftConfig, DraftHead, save_head
from hasspec.target import Target

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def tiny_head_folder(tmp_path_factory: pytest.TempPathFactory, tiny_target_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "tiny-head"
    config = DraftConfig.from_target(Target.load(str(tiny_target_folder)).config)
    torch.manual_seed(1)
    save_head(DraftHead(config), folder)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"id": 1, "turns": ["Hello there", "And more?"]}\n'
        + "".join(f'{{"id": {n}, "prompt": "{"xyz" * n}"}}\n' for n in range(2, 8))
    )
    return file


@pytest.fixture(scope="session")
def make_store() -> Callable[[Path, str], Path]:
    """``make_store(path, fingerprint)``: a token store of twenty short conversations."""

    def make(path: Path, fingerprint: str) -> Path:
        rng = np.random.default_rng(0)
        store = TokenStore.create(path, StoreMetadata(target={"fingerprint": fingerprint}))
        store.append(
            [
                Conversation(rng.integers(3, 100, size=length).tolist(), [(4, length)])
                for length in rng.integers(12, 30, size=20).tolist()
            ],
            complete=True,
        )
        return path

    return make


@pytest.fixture
def run() -> Run:
    """``run(argument, ..., input=text)``: the command in this process."""

    def invoke(*arguments: object, **options: object) -> Result:
        return CliRunner().invoke(app, [str(a) for a in arguments], **options)

    return invoke


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Commands set the number of threads of their process, which here is the tests' own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
