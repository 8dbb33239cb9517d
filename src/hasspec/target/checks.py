"""Which models can serve as a target, decided by probing rather than by a list of names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hasspec.target.cache import SequenceCache
from hasspec.target.masks import attention_mask_for


def refuse_unservable(model: PreTrainedModel, name: str) -> None:
    """Raise ``ValueError`` with the reason if the model cannot be a target.

    A target must map its final hidden state to logits by its output layer alone (the draft head
    is trained to imitate that state), and must attend exactly where a given mask says, over a
    given cache (a tree of tokens is verified in one forward).
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"target {name!r} is an encoder-decoder model ({type(model).__name__}); "
            "hasspec serves decoder-only causal language models"
        )
    if not model.can_generate():
        raise ValueError(
            f"target {name!r} ({type(model).__name__}) cannot generate text; "
            "load a causal language model with its language-model head"
        )
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"target {name!r} ({type(model).__name__}) has no linear output layer; "
            f"expected get_output_embeddings() to be nn.Linear, found {type(head).__name__}"
        )
    for layer in (head, model.get_input_embeddings()):
        if layer.weight.device.type == "meta":
            raise ValueError(
                f"target {name!r} has its embedding or output layer offloaded to CPU or disk, and "
                "every draft step would fetch it; give a device_map that puts both on a device"
            )
    with torch.inference_mode():
        _probe(model, name, head)


def _probe(model: PreTrainedModel, name: str, head: nn.Module) -> None:
    body = model.get_decoder()
    if not isinstance(body, PreTrainedModel):
        raise ValueError(
            f"target {name!r} ({type(model).__name__}) gives no access to the model under its "
            f"output layer: get_decoder() is {type(body).__name__}"
        )
    ids_BT = torch.arange(1, 7, device=head.weight.device)[None] % head.weight.shape[0]
    feature_BTD = getattr(body(input_ids=ids_BT, use_cache=False), "last_hidden_state", None)
    head_input, head_output, logit_BTV = _head_call(model, name, head, ids_BT)
    if (
        feature_BTD is None
        or head_input.shape != feature_BTD.shape
        or not _close(feature_BTD, head_input)
    ):
        raise ValueError(
            f"target {name!r} ({type(model).__name__}) does not hand its final hidden state to its "
            "output layer as it is; such targets are not supported"
        )
    # Exact, in the same forward: soft-capping changes small logits by less than any tolerance.
    if not torch.equal(head_output.to(logit_BTV.dtype), logit_BTV):
        raise ValueError(
            f"target {name!r} ({type(model).__name__}) changes its logits after the output layer "
            "(scaling or soft-capping), so its final hidden state alone does not give them; "
            "such targets are not supported"
        )
    _probe_tree(model, name, body, ids_BT, feature_BTD)


def _head_call(
    model: PreTrainedModel, name: str, head: nn.Module, ids_BT: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the output layer reads and writes in one forward, and the logits of that forward."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = head.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    try:
        logit_BTV = model(input_ids=ids_BT, use_cache=False).logits
    finally:
        handle.remove()
    if len(seen) != 1:
        raise ValueError(
            f"target {name!r} ({type(model).__name__}) calls its output layer {len(seen)} times a "
            "forward, expected once; such targets are not supported"
        )
    head_input, head_output = seen[0]
    return head_input, head_output, logit_BTV


def _probe_tree(
    model: PreTrainedModel, name: str, body: nn.Module, ids_BT: Tensor, feature_BTD: Tensor
) -> None:
    """Two siblings verified together over a cache must each see their own path only."""
    reason = (
        f"target {name!r} ({type(model).__name__}) does not follow a given attention mask over a "
        "preallocated cache (recurrent or linear-attention layers, or positions tied to cache "
        "slots), so a tree of tokens cannot be verified in one forward"
    )
    n_past = ids_BT.shape[1] - 2
    device = ids_BT.device
    last = ids_BT[:, n_past:]
    # Slots: decoy sibling, the true token, the true token's child.
    tree_BT = torch.cat([last[:, :1] + 1, last], dim=1) % model.config.get_text_config().vocab_size
    mask = torch.ones(1, 1, 3, n_past + 3, dtype=torch.bool, device=device)
    mask[..., n_past:] = torch.tensor(
        [[True, False, False], [False, True, False], [False, True, True]], device=device
    )
    position_BT = torch.tensor([[n_past, n_past, n_past + 1]], device=device)
    try:
        cache = SequenceCache(model.config.get_text_config().num_hidden_layers, n_past + 4)
        body(input_ids=ids_BT[:, :n_past], past_key_values=cache, use_cache=True)
        found = body(
            input_ids=tree_BT,
            attention_mask=attention_mask_for(model, mask, feature_BTD.dtype),
            position_ids=position_BT,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        n_cached = cache.length
    except Exception as error:  # whatever the foreign module raises, the verdict is the same
        raise ValueError(f"{reason}: {type(error).__name__}: {error}") from error
    if n_cached != n_past + 3 or not _close(found[:, 1:], feature_BTD[:, n_past:]):
        raise ValueError(reason)


def _close(found: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-3 if expected.dtype in (torch.float32, torch.float64) else 6e-2
    scale = expected.float().abs().max().clamp(min=1e-6)
    return bool((found.float() - expected.float()).abs().max() <= tolerance * scale)
