"""The head against an independent statement of its equations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hasspec.draft import DraftConfig, DraftHead, DraftVocabulary
from hasspec.target import SequenceCache


def naive_head(head: DraftHead, embed_TD: Tensor, feature_TD: Tensor) -> Tensor:
    """The equations of the EAGLE head, one row and one attention head at a time."""
    config, layer = head.config, head.layers[0]
    attention = layer.self_attn
    half = config.head_dim // 2
    angle = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)

    def rotate(vector: Tensor, position: int) -> Tensor:
        cos, sin = (position * angle).cos(), (position * angle).sin()
        low, high = vector[:half], vector[half:]
        return torch.cat([low * cos - high * sin, high * cos + low * sin])

    rows = [head.fc.weight @ torch.cat([e, f]) for e, f in zip(embed_TD, feature_TD, strict=True)]
    outputs = []
    for t, row in enumerate(rows):
        heads = []
        for h in range(config.num_attention_heads):
            shared = h // (config.num_attention_heads // config.num_key_value_heads)
            own = slice(h * config.head_dim, (h + 1) * config.head_dim)
            kv = slice(shared * config.head_dim, (shared + 1) * config.head_dim)
            query = rotate((attention.q_proj.weight @ row)[own], t)
            keys = [rotate((attention.k_proj.weight @ rows[s])[kv], s) for s in range(t + 1)]
            values = torch.stack([(attention.v_proj.weight @ rows[s])[kv] for s in range(t + 1)])
            scores = torch.stack([query @ key for key in keys]) / config.head_dim**0.5
            heads.append(torch.softmax(scores, 0) @ values)
        residual = row + attention.o_proj.weight @ torch.cat(heads)
        scale = (residual.pow(2).mean() + config.rms_norm_eps).rsqrt()
        normed = layer.post_attention_layernorm.weight * residual * scale
        gate = torch.nn.functional.silu(layer.mlp.gate_proj.weight @ normed)
        up = layer.mlp.up_proj.weight @ normed
        outputs.append(residual + layer.mlp.down_proj.weight @ (gate * up))
    return torch.stack(outputs)


@pytest.fixture
def head(tiny_target) -> DraftHead:
    torch.manual_seed(1)
    head = DraftHead(DraftConfig.from_target(tiny_target.config)).double()
    with torch.no_grad():
        head.layers[0].post_attention_layernorm.weight.uniform_(0.5, 1.5)
    return head.requires_grad_(False)


def test_forward_follows_the_equations(head):
    embed, feature = torch.randn(2, 7, 32, dtype=torch.float64).unbind(0)
    found = head(embed[None], feature[None], torch.arange(7)[None])[0]
    # The norm's arithmetic is transformers' own, which rounds to float32 inside.
    torch.testing.assert_close(found, naive_head(head, embed, feature), rtol=1e-5, atol=1e-5)


def test_cached_steps_equal_one_forward(head):
    embed, feature = torch.randn(2, 1, 9, 32, dtype=torch.float64).unbind(0)
    position = torch.arange(9)[None]
    whole = head(embed, feature, position)
    cache, parts = SequenceCache(1, 9), []
    for start, end in ((0, 4), (4, 5), (5, 9)):
        rows = slice(start, end)
        parts.append(head(embed[:, rows], feature[:, rows], position[:, rows], cache=cache))
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-9)


def test_mask_decides_which_rows_are_seen(head):
    embed, feature = torch.randn(2, 1, 3, 32, dtype=torch.float64).unbind(0)
    mask = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 1]], dtype=torch.bool)[None, None]
    found = head(embed, feature, torch.tensor([[0, 0, 1]]), mask=mask)
    path = head(embed[:, [0, 2]], feature[:, [0, 2]], torch.tensor([[0, 1]]))
    torch.testing.assert_close(found[:, [0, 2]], path, rtol=0, atol=1e-9)


def test_draft_vocabulary_takes_the_rows_of_its_tokens(tiny_target):
    ids = torch.tensor([5, 2, 90])
    vocabulary = DraftVocabulary(tiny_target, ids)
    feature_TD = torch.randn(4, 32)
    expected = tiny_target.logits(feature_TD)[:, ids]
    torch.testing.assert_close(vocabulary.logits(feature_TD), expected)
    assert len(vocabulary) == 3
    assert vocabulary.token_ids(torch.tensor([[2, 0]])).tolist() == [[90, 5]]
    everything = DraftVocabulary(tiny_target, None)
    assert everything.token_ids(torch.tensor([7])).tolist() == [7]
    assert len(everything) == tiny_target.vocab_size


def test_config_follows_the_target(tiny_target_factory):
    llama3 = DraftConfig.from_target(tiny_target_factory("llama3").config)
    assert llama3.rope_scaling is not None
    assert llama3.rope_scaling["rope_type"] == "llama3"
    with pytest.raises(ValueError, match="extra"):
        DraftConfig.from_target(tiny_target_factory().config, width=3)
