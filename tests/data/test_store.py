from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from hasspec.data import Conversation, TokenStore
from hasspec.data.store import StoreMetadata, tokenizer_fingerprint


def conversation(number: int) -> Conversation:
    return Conversation(
        [number, 7, 8, 9, 2, 5, 6], [(2, 5), (6, 7)], "test", "eos", f"prompt-{number}"
    )


def filled(path: Path, *sizes: int) -> TokenStore:
    store = TokenStore.create(path, StoreMetadata(settings={"temperature": 0.0}, seed=3))
    start = 0
    for size in sizes:
        store.append([conversation(start + index) for index in range(size)])
        start += size
    return store


def test_round_trip(tmp_path: Path) -> None:
    filled(tmp_path / "s", 3, 2)
    store = TokenStore.open(tmp_path / "s")
    assert list(store) == [conversation(number) for number in range(5)]
    assert (len(store), store.n_tokens, store.n_answer_tokens) == (5, 35, 20)
    assert store.metadata.seed == 3


def test_the_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    one, two = filled(tmp_path / "a", 3, 2), filled(tmp_path / "b", 1, 4)
    assert one.fingerprint() == two.fingerprint()
    assert one.fingerprint() != filled(tmp_path / "c", 4).fingerprint()


def test_the_shards_are_ordinary_parquet(tmp_path: Path) -> None:
    filled(tmp_path / "s", 2, 2)
    data = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "s" / "*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert data[3]["token_ids"] == [3, 7, 8, 9, 2, 5, 6]
    assert data[3]["answer_spans"] == [2, 5, 6, 7]


def test_missing_and_damaged_shards_are_named(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", 2, 2)
    shard = tmp_path / "s" / "shard-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00001\.parquet: shard differs"):
        list(store)
    shard.write_bytes(content[:40])
    with pytest.raises(ValueError, match=r"shard-00001\.parquet: shard differs"):
        list(store)
    shard.unlink()
    with pytest.raises(ValueError, match=r"shard-00001\.parquet: shard is missing"):
        TokenStore.open(tmp_path / "s")


def test_foreign_folders_and_indices(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no token store there"):
        TokenStore.open(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        TokenStore.create(tmp_path, StoreMetadata())
    filled(tmp_path / "s", 1)
    index = tmp_path / "s" / "store.json"
    good = json.loads(index.read_text())
    for broken, message in (
        ("{", "not the index of a token store"),
        (json.dumps(good | {"format_version": 2}), "format version 2"),
        (json.dumps(good | {"colour": "red"}), "colour"),
    ):
        index.write_text(broken)
        with pytest.raises(ValueError, match=message):
            TokenStore.open(tmp_path / "s")


def test_a_shard_that_the_index_does_not_know_is_overwritten(tmp_path: Path) -> None:
    """A writer killed between the shard and the index leaves one behind."""
    filled(tmp_path / "s", 2)
    (tmp_path / "s" / "shard-00001.parquet").write_bytes(b"half a shard")
    store = TokenStore.open(tmp_path / "s")
    assert len(list(store)) == 2
    store.append([conversation(2)])
    assert list(TokenStore.open(tmp_path / "s")) == [conversation(n) for n in range(3)]


def test_resuming_with_other_settings_names_the_difference(tmp_path: Path) -> None:
    filled(tmp_path / "s", 2)
    same = StoreMetadata(settings={"temperature": 0.0}, seed=3)
    assert len(TokenStore.resume(tmp_path / "s", same)) == 2
    other = StoreMetadata(settings={"temperature": 0.5}, seed=3)
    with pytest.raises(ValueError, match=r"temperature: 0\.0 in the store, 0\.5 now"):
        TokenStore.resume(tmp_path / "s", other)
    with pytest.raises(ValueError, match="seed: 3 in the store, 4 now"):
        TokenStore.resume(tmp_path / "s", same.model_copy(update={"seed": 4}))


@pytest.mark.parametrize("spans", [[], [(3, 3)], [(0, 8)], [(2, 5), (4, 6)]])
def test_impossible_spans_are_refused(tmp_path: Path, spans: list[tuple[int, int]]) -> None:
    store = filled(tmp_path / "s")
    bad = conversation(0)
    bad.answer_spans = spans
    with pytest.raises(ValueError, match="answer span"):
        store.append([bad])


def test_the_tokenizer_fingerprint_ignores_padding_state(tiny_tokenizer) -> None:
    before = tokenizer_fingerprint(tiny_tokenizer)
    tiny_tokenizer(["a", "bb"], padding=True)
    assert tokenizer_fingerprint(tiny_tokenizer) == before
