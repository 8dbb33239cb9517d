"""Models that cannot serve are refused with the reason, by probing them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hasspec.target import Target
from tiny_models import SMALL, build_model

BERT = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}


def t5() -> PreTrainedModel:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=101, **sizes))


def lfm2() -> PreTrainedModel:
    return Lfm2ForCausalLM(Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]))


def mamba() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(vocab_size=101, hidden_size=32, num_hidden_layers=2))


def bloom() -> PreTrainedModel:
    return BloomForCausalLM(BloomConfig(vocab_size=101, hidden_size=32, n_layer=2, n_head=4))


def bidirectional() -> PreTrainedModel:
    """A Llama whose plain forward attends in both directions."""
    model = build_model()
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    return model


CASES: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "encoder-decoder": (t5, "encoder-decoder"),
    "masked LM": (lambda: BertForMaskedLM(BertConfig(**BERT)), "cannot generate"),
    "no output layer": (lambda: LlamaModel(LlamaConfig(**SMALL)), "cannot generate"),
    "classifier": (
        lambda: LlamaForSequenceClassification(LlamaConfig(**SMALL)),
        "cannot generate",
    ),
    "transform before the output layer": (
        lambda: BertLMHeadModel(BertConfig(**BERT, is_decoder=True)),
        "does not hand its final hidden state",
    ),
    "soft-capped logits": (
        lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8)),
        "changes its logits",
    ),
    "scaled logits, Cohere": (
        lambda: CohereForCausalLM(CohereConfig(**SMALL)),
        "changes its logits",
    ),
    "scaled logits, Granite": (
        lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0)),
        "changes its logits",
    ),
    "state space": (mamba, "does not follow a given attention mask"),
    "convolution": (lfm2, "does not follow a given attention mask"),
    "positions from cache slots": (bloom, "does not follow a given attention mask"),
    "not causal": (bidirectional, "does not follow a given attention mask"),
}


@pytest.mark.parametrize("case", CASES)
def test_model_that_cannot_serve_is_refused_with_the_reason(case: str) -> None:
    build, reason = CASES[case]
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=reason):
        Target.from_model(build().eval(), name="candidate")


@torch.inference_mode()
def test_bidirectional_case_sees_the_future() -> None:
    first, second = (bidirectional()(torch.tensor([[5, last]])).logits[0, 0] for last in (6, 7))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gentle_soft_capping_is_noticed_in_every_dtype(dtype: str) -> None:
    """Gemma 2's own cap of 30 changes the small logits of a tiny model by less than 0.1 %."""
    torch.manual_seed(0)
    config = Gemma2Config(**{**SMALL, "initializer_range": 0.05}, head_dim=8)
    with pytest.raises(ValueError, match="changes its logits"):
        Target.from_model(Gemma2ForCausalLM(config).to(getattr(torch, dtype)).eval())


@pytest.mark.parametrize("case", ["encoder-decoder", "soft-capped logits", "state space"])
def test_refused_from_a_folder_too(case: str, tmp_path: Path) -> None:
    build, reason = CASES[case]
    build().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=reason):
        Target.load(str(tmp_path))
