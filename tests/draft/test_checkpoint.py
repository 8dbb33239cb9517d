"""Heads on disk: bit-exact round trips, and a clear refusal of what cannot be right."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hasspec.draft import DraftConfig, DraftHead, load_head, save_head
from hasspec.target import Target


def saved_head(target: Target, folder: Path, **overrides: object) -> DraftHead:
    torch.manual_seed(0)
    head = DraftHead(DraftConfig.from_target(target.config, **overrides))
    head.metadata = {"name": "test"}
    save_head(head, folder, dtype=torch.float32)
    return head


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("family", ["llama", "llama3", "qwen2", "qwen3", "mistral", "smollm2"])
def test_round_trip_is_exact_for_every_family(tiny_target_factory, tmp_path, family):
    target = tiny_target_factory(family)
    head = saved_head(target, tmp_path, qkv_bias=family == "qwen2", fc_bias=family == "llama")
    head.draft_vocab_N = torch.tensor([3, 7, 50])
    save_head(head, tmp_path, dtype=torch.float32)
    loaded = load_head(tmp_path, target=target)
    assert loaded.config == head.config
    assert loaded.metadata == head.metadata
    assert torch.equal(loaded.draft_vocab_N, head.draft_vocab_N)
    for name, weight in head.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_layout_is_the_published_one(tiny_target, tmp_path):
    saved_head(tiny_target, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    block = "layers.0"
    assert set(tensors) == {
        "fc.weight",
        *(f"{block}.self_attn.{p}_proj.weight" for p in "qkvo"),
        *(f"{block}.mlp.{p}_proj.weight" for p in ("gate", "up", "down")),
        f"{block}.post_attention_layernorm.weight",
    }
    assert tensors["fc.weight"].shape == (32, 64)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_theta"] == tiny_target.config.rope_parameters["rope_theta"]
    assert config["max_position_embeddings"] == tiny_target.config.max_position_embeddings
    # vLLM would build biases for this key and leave them random.
    assert "bias" not in config


def test_pytorch_bin_with_embedding_and_absent_rope_theta(tiny_target_factory, tmp_path):
    target = tiny_target_factory(rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    saved_head(target, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["embed_tokens.weight"] = target.model.get_input_embeddings().weight.clone()
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_theta"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_head(tmp_path, target=target)
    assert loaded.config.rope_theta == 10000.0
    assert torch.equal(loaded.fc.weight, tensors["fc.weight"])


def test_embedding_of_another_target_is_refused(tiny_target, tmp_path):
    saved_head(tiny_target, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["embed_tokens.weight"] = torch.randn(tiny_target.vocab_size, tiny_target.hidden_size)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="embedding that is not that of target"):
        load_head(tmp_path, target=tiny_target)


def test_head_of_another_width_or_vocabulary_is_refused(tiny_target_factory, tmp_path):
    saved_head(tiny_target_factory(), tmp_path)
    wide = tiny_target_factory(hidden_size=64)
    with pytest.raises(ValueError, match="hidden_size 32 but target .* has 64"):
        load_head(tmp_path, target=wide)
    edit_config(tmp_path, vocab_size=77)
    with pytest.raises(ValueError, match="vocab_size 77"):
        load_head(tmp_path, target=tiny_target_factory())


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_weights_are_named(tiny_target, tmp_path, file):
    saved_head(tiny_target, tmp_path)
    if file == "pytorch_model.bin":
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / file)
        (tmp_path / "model.safetensors").unlink()
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a readable weight file"):
        load_head(tmp_path, target=tiny_target)


class _Bomb:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_malicious_pickle_is_refused_and_not_run(tiny_target, tmp_path):
    saved_head(tiny_target, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    marker = tmp_path / "was-run"
    torch.save({"fc.weight": _Bomb(marker)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="plain tensors"):
        load_head(tmp_path, target=tiny_target)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(marker)))
    with pytest.raises(ValueError, match="plain tensors"):
        load_head(tmp_path, target=tiny_target)
    assert not marker.exists()


def test_missing_unknown_and_misshapen_tensors_are_named(tiny_target, tmp_path):
    saved_head(tiny_target, tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    missing = {name: w for name, w in whole.items() if name != "layers.0.mlp.up_proj.weight"}
    save_file(missing, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="missing: layers.0.mlp.up_proj.weight"):
        load_head(tmp_path, target=tiny_target)
    save_file({**whole, "lm_head.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="unknown: lm_head.weight"):
        load_head(tmp_path, target=tiny_target)
    save_file({**whole, "fc.weight": torch.zeros(32, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"fc\.weight .* expected \(32, 64\)"):
        load_head(tmp_path, target=tiny_target)


def test_configuration_errors_are_named(tiny_target, tmp_path):
    with pytest.raises(ValueError, match="no draft head in"):
        load_head(tmp_path / "absent", target=tiny_target)
    saved_head(tiny_target, tmp_path)
    edit_config(tmp_path, draft_layers=2)
    with pytest.raises(ValueError, match="unknown keys .* draft_layers"):
        load_head(tmp_path, target=tiny_target)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_head(tmp_path, target=tiny_target)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_head(tmp_path, target=tiny_target)


@pytest.mark.parametrize("content", ["[1, 1]", "[-1]", "[1000]", "[]", '{"a": 1}'])
def test_bad_draft_vocabulary_is_refused(tiny_target, tmp_path, content):
    saved_head(tiny_target, tmp_path)
    (tmp_path / "draft_vocab.json").write_text(content)
    with pytest.raises(ValueError, match="distinct token ids"):
        load_head(tmp_path, target=tiny_target)
