"""Each shipped head loads, comes with its provenance, and changes nothing of what is said."""

from __future__ import annotations

import pytest

from hasspec.decoding import Decoder
from hasspec.draft import load_head
from hasspec.heads import shipped_head, shipped_heads
from hasspec.training import Recipe, load_recipe


def test_both_heads_are_shipped():
    assert shipped_heads() == ["smollm2-135m-eagle", "smollm2-135m-hass"]


@pytest.mark.parametrize("name", ["smollm2-135m-hass", "smollm2-135m-eagle"])
def test_shipped_head_drafts_for_the_embedded_target(embedded_target, name):
    folder = shipped_head(name)
    assert (folder / "README.md").is_file()
    head = load_head(folder, target=embedded_target)
    assert head.metadata["target_fingerprint"] == embedded_target.fingerprint()
    recipe = load_recipe(folder / "recipe.yaml")
    assert Recipe.model_validate(head.metadata["recipe"]) == recipe
    messages = [{"role": "user", "content": "What is 12 plus 30? Explain step by step."}]
    plain = Decoder(embedded_target).generate(messages, max_new_tokens=40)
    drafted = Decoder(embedded_target, head).generate(messages, max_new_tokens=40)
    assert drafted.token_ids == plain.token_ids
    # Far above what an untrained or wrongly loaded head reaches (1.1 or less).
    assert drafted.tau > 1.8
