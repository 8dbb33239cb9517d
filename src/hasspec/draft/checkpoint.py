"""Heads on disk, in the one layout that EAGLE-1, EAGLE-2 and HASS share.

``config.json`` (a one-layer ``LlamaConfig``) and ``model.safetensors`` are what other engines
read. Beside them, ignored by those engines: ``hasspec.json`` (provenance) and
``draft_vocab.json`` (ids of the tokens worth drafting).
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialised
from torch import Tensor
from transformers import LlamaConfig

from hasspec.draft.config import DraftConfig, rope_of
from hasspec.draft.head import DraftHead
from hasspec.files import write_atomically
from hasspec.target import Target

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# Keys that published heads carry besides LlamaConfig's own; none changes the head's arithmetic.
_KNOWN_KEYS = frozenset(
    {"bias", "qkv_bias", "fc_bias", "torch_dtype", "rope_theta", "rope_scaling", "architectures"}
    | {"transformers_version", "_name_or_path", "_attn_implementation", "pretraining_tp"}
)


def save_head(head: DraftHead, path: str | Path, *, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a head as a folder; each file appears whole or not at all."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: weight.detach().to("cpu", dtype).contiguous()
        for name, weight in head.state_dict().items()
    }
    write_atomically(folder / "model.safetensors", serialised(weights, metadata={"format": "pt"}))
    _write_json(folder / "config.json", _config_json(head.config, dtype))
    _write_json(folder / "hasspec.json", head.metadata)
    if head.draft_vocab_N is not None:
        _write_json(folder / "draft_vocab.json", head.draft_vocab_N.tolist(), indent=None)


def load_head(path: str | Path, *, target: Target) -> DraftHead:
    """Load a head and check that it can belong to the target.

    Returns:
        The head in the target's dtype and on its device, in eval mode.

    Raises:
        ValueError: nothing there, unreadable or unsafe files, unknown keys or tensors, or shapes
            that do not fit the target; the message says which and what to do.
    """
    folder = Path(path)
    weights = _read_weights(folder)
    config = _read_config(folder, weights)
    _check_fits(config, target, folder)
    embedding = weights.pop("embed_tokens.weight", None)
    if embedding is not None:
        _check_embedding(embedding, target, folder)
    head = DraftHead(config)
    _check_tensors(head, weights, folder)
    head.load_state_dict(weights)
    head.metadata = _read_json(folder / "hasspec.json") if _has(folder, "hasspec.json") else {}
    if _has(folder, "draft_vocab.json"):
        head.draft_vocab_N = _read_draft_vocab(folder, target)
    return head.to(target.device, target.dtype).eval().requires_grad_(False)


def _config_json(config: DraftConfig, dtype: torch.dtype) -> dict[str, Any]:
    written = config.model_dump(exclude={"qkv_bias", "fc_bias"})
    # Engines read `attention_bias`; a key named `bias` makes vLLM build biases that stay random.
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "attention_bias": config.qkv_bias,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **written,
    }


def _read_weights(folder: Path) -> dict[str, Tensor]:
    present = [name for name in WEIGHT_FILES if _has(folder, name)]
    if not present:
        raise ValueError(
            f"no draft head in {folder}: expected {' or '.join(WEIGHT_FILES)} and config.json; "
            "train one with `hasspec train`, or give the folder of a published EAGLE or HASS head"
        )
    file = folder / present[0]
    try:
        if file.suffix == ".safetensors":
            weights = load_file(file)
        else:
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{file} is not a readable weight file (truncated, damaged, or holding more than "
            f"plain tensors, which is refused): {error}; fetch or export it again"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise ValueError(f"{file} does not hold a dictionary of tensors; export the head again")
    return weights


def _read_config(folder: Path, weights: dict[str, Tensor]) -> DraftConfig:
    if not _has(folder, "config.json"):
        raise ValueError(f"no config.json in {folder}; a head is a config.json beside its weights")
    raw = _read_json(folder / "config.json")
    if not isinstance(raw, dict):
        raise ValueError(f"{folder / 'config.json'} is not a JSON object")
    fields = set(DraftConfig.model_fields)
    unknown = sorted(set(raw) - fields - _KNOWN_KEYS - set(LlamaConfig().to_dict()))
    if unknown:
        raise ValueError(
            f"unknown keys in {folder / 'config.json'}: {', '.join(unknown)}; "
            "an EAGLE-1/2 or HASS head has the keys of a one-layer LlamaConfig"
        )
    llama = LlamaConfig(**{k: v for k, v in raw.items() if k not in ("qkv_bias", "fc_bias")})
    rope_theta, rope_scaling = rope_of(llama)
    # Biases are detected by their presence: the official trainer ignores its own flags.
    return DraftConfig(
        **{
            name: getattr(llama, name)
            for name in fields - {"rope_theta", "rope_scaling", "qkv_bias", "fc_bias"}
        },
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        qkv_bias="layers.0.self_attn.q_proj.bias" in weights,
        fc_bias="fc.bias" in weights,
    )


def _check_fits(config: DraftConfig, target: Target, folder: Path) -> None:
    expected = {"hidden_size": target.hidden_size, "vocab_size": target.vocab_size}
    for key, value in expected.items():
        if getattr(config, key) != value:
            raise ValueError(
                f"the head in {folder} has {key} {getattr(config, key)} but target "
                f"{target.name!r} has {value}; it was trained for another target"
            )


def _check_embedding(embedding: Tensor, target: Target, folder: Path) -> None:
    own = target.model.get_input_embeddings().weight
    if embedding.shape != own.shape or not torch.allclose(
        embedding.float(), own.float().cpu(), atol=1e-2, rtol=1e-2
    ):
        raise ValueError(
            f"the head in {folder} carries an embedding that is not that of target "
            f"{target.name!r}; it was trained for another target"
        )


def _check_tensors(head: DraftHead, weights: dict[str, Tensor], folder: Path) -> None:
    expected = {name: tuple(weight.shape) for name, weight in head.state_dict().items()}
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unknown:
        raise ValueError(
            f"the tensors in {folder} are not those of an EAGLE-1/2 or HASS head; "
            f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(
                f"tensor {name} in {folder} has shape {found[name]}, expected {shape}; "
                "config.json and the weights do not belong together"
            )


def _read_draft_vocab(folder: Path, target: Target) -> Tensor:
    ids = _read_json(folder / "draft_vocab.json")
    valid = isinstance(ids, list) and all(
        isinstance(i, int) and 0 <= i < target.vocab_size for i in ids
    )
    if not valid or not ids or len(set(ids)) != len(ids):
        raise ValueError(
            f"{folder / 'draft_vocab.json'} must be a list of distinct token ids below "
            f"{target.vocab_size}; delete it to draft from the whole vocabulary"
        )
    return torch.tensor(ids, dtype=torch.long, device=target.device)


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    write_atomically(path, json.dumps(value, indent=indent) + "\n")
