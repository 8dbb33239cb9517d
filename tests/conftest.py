"""Targets that every test can use: tiny random ones of each family, and a real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from hasspec.target import Target
from tiny_models import build_model, build_tokenizer

# Tiny matrices only lose time to more threads, and no test may starve its neighbours.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def tiny_target_factory(tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Target]:
    """``factory(family="llama", seed=0, **config overrides) -> Target``, float32 on the CPU."""

    def factory(family: str = "llama", *, seed: int = 0, **overrides: object) -> Target:
        model = build_model(family, seed=seed, **overrides)
        return Target.from_model(model, tiny_tokenizer, name=f"tiny-{family}")

    return factory


@pytest.fixture
def tiny_target(tiny_target_factory: Callable[..., Target]) -> Target:
    return tiny_target_factory()


@pytest.fixture(scope="session")
def tiny_target_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """The model of ``tiny_target`` with its tokenizer, as a folder that ``Target.load`` reads."""
    folder = tmp_path_factory.mktemp("tiny-target")
    build_model().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def embedded_target() -> Target:
    """SmolLM2-135M-Instruct, float32 on the CPU. Do not change its weights."""
    return Target.load("smollm2-135m")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the real model come last: a mistake shows first where it is quick to see."""
    items.sort(key=lambda item: "embedded_target" in getattr(item, "fixturenames", ()))
