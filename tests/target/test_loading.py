"""What can be loaded as a target, and what is said about what cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from hasspec.decoding import Decoder, TreeSpec
from hasspec.draft import DraftConfig, DraftHead
from hasspec.target import Target
from hasspec.target.model import parse_dtype
from tiny_models import FAMILIES, build_model

IDS_BT = torch.tensor([[5, 9, 33, 71]])


@pytest.fixture
def folder(tiny_target_folder: Path, tmp_path: Path) -> Path:
    """A private copy of a loadable folder, to be spoilt."""
    return Path(shutil.copytree(tiny_target_folder, tmp_path / "model"))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shard_size", ["1GB", "20KB"], ids=["single-file", "sharded"])
def test_saved_model_loads_with_the_same_features(
    family: str, shard_size: str, tmp_path: Path
) -> None:
    model = build_model(family)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    n_files = len(list(tmp_path.glob("*.safetensors")))
    assert n_files == 1 if shard_size == "1GB" else n_files > 1
    target = Target.load(str(tmp_path))
    expected = Target.from_model(model)
    assert target.fingerprint() == expected.fingerprint()
    assert torch.equal(target.features(IDS_BT), expected.features(IDS_BT))
    assert torch.equal(target.head_weight, expected.head_weight)


@torch.inference_mode()
def test_pickled_checkpoint_loads(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(build_model().state_dict(), folder / "pytorch_model.bin")
    expected = Target.from_model(build_model()).features(IDS_BT)
    assert torch.equal(Target.load(str(folder)).features(IDS_BT), expected)


def test_attributes_of_a_loaded_target(folder: Path) -> None:
    target = Target.load(str(folder), dtype="bfloat16")
    assert target.name == str(folder)
    assert target.dtype == torch.bfloat16
    assert (target.hidden_size, target.vocab_size, target.n_layers) == (32, 101, 2)
    assert target.max_length == 256
    assert target.eos_ids == {2}
    assert not any(parameter.requires_grad for parameter in target.model.parameters())


def test_fingerprint_tells_weights_apart_but_not_dtypes(folder: Path) -> None:
    found = Target.load(str(folder)).fingerprint()
    assert Target.load(str(folder), dtype="bfloat16").fingerprint() == found
    assert Target.from_model(build_model(seed=1)).fingerprint() != found


def test_tokenizer_comes_along_and_its_absence_is_allowed(folder: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    target = Target.load(str(folder))
    text = target.tokenizer.decode(target.encode_chat(messages))
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    for path in folder.glob("tokenizer*"):
        path.unlink()
    bare = Target.load(str(folder))
    assert bare.tokenizer is None
    with pytest.raises(ValueError, match="has no chat template"):
        bare.encode_chat(messages)


def test_damaged_tokenizer_is_not_taken_for_none(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot load the tokenizer"):
        Target.load(str(folder))


def test_truncated_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cannot load .* as a causal language model"):
        Target.load(str(folder))


def test_pickle_with_code_in_it_is_refused_and_not_run(folder: Path) -> None:
    class Malicious:
        def __reduce__(self):
            return (Path.touch, (folder / "was-here",))

    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Malicious()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot load"):
        Target.load(str(folder))
    assert not (folder / "was-here").exists()


def test_missing_shard_is_refused(tmp_path: Path) -> None:
    build_model().save_pretrained(tmp_path, max_shard_size="20KB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(ValueError, match="cannot load .*00002-of"):
        Target.load(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"num_hidden_layers": 3}, "layers.2"), ({"intermediate_size": 128}, "mlp")],
    ids=["missing", "another shape"],
)
def test_weights_that_would_stay_random_are_refused(
    folder: Path, changes: dict[str, int], named: str
) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=f"does not fit its own config.json.*{named}"):
        Target.load(str(folder))


def test_damaged_config_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not a valid JSON"):
        Target.load(str(folder))


def test_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        Target.load(str(tmp_path / "nowhere"))


def test_unknown_dtype_and_device_are_refused(folder: Path) -> None:
    assert parse_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ValueError, match="unknown dtype 'fp8'; choose one of float32"):
        Target.load(str(folder), dtype="fp8")
    with pytest.raises(ValueError, match="unknown device 'abacus'"):
        Target.load(str(folder), device="abacus")
    with pytest.raises(ValueError, match="there is no device 'cuda:99'"):
        Target.load(str(folder), device="cuda:99")


def test_a_device_map_with_offloaded_layers_changes_nothing(tiny_target_folder: Path) -> None:
    ids_BT = torch.arange(3, 20)[None]
    whole = Target.load(str(tiny_target_folder))
    names = {f"model.layers.{layer}": "disk" if layer else "cpu" for layer in range(whole.n_layers)}
    rest = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    spread = Target.load(
        str(tiny_target_folder), device_map={**names, **dict.fromkeys(rest, "cpu")}
    )
    assert any(weight.is_meta for weight in spread.model.parameters())
    assert torch.equal(spread.features(ids_BT), whole.features(ids_BT))
    assert torch.equal(spread.embed(ids_BT), whole.embed(ids_BT))
    assert spread.fingerprint() == whole.fingerprint()
    head = DraftHead(DraftConfig.from_target(whole.config)).eval()
    answers = [
        Decoder(target, head, tree=TreeSpec.parse("3x2x5")).generate([5, 6, 7], max_new_tokens=9)
        for target in (whole, spread)
    ]
    assert answers[0].token_ids == answers[1].token_ids


def test_an_offloaded_output_layer_is_refused(tiny_target_folder: Path) -> None:
    with pytest.raises(ValueError, match="output layer offloaded"):
        Target.load(str(tiny_target_folder), device_map={"model": "cpu", "lm_head": "disk"})
