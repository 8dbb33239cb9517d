"""Shape of a draft head, taken from its target."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt
from transformers import LlamaConfig, PreTrainedConfig


class DraftConfig(BaseModel):
    """Configuration of an EAGLE-1/2 shaped head (arXiv 2401.15077; unchanged by HASS).

    Width, heads, FFN size, RoPE and epsilon are the target's; ``fc_bias`` and ``qkv_bias`` say
    which optional biases the head has.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    hidden_act: str = "silu"
    qkv_bias: bool = False
    fc_bias: bool = False

    @classmethod
    def from_target(cls, config: PreTrainedConfig, **overrides: Any) -> DraftConfig:
        """The head shape that fits a target's configuration.

        Raises:
            ValueError: the target's configuration lacks a size or has one RoPE per layer type.
        """
        try:
            rope_theta, rope_scaling = rope_of(config)
            n_heads = config.num_attention_heads
            values = {
                "hidden_size": config.hidden_size,
                "intermediate_size": config.intermediate_size,
                "num_attention_heads": n_heads,
                "num_key_value_heads": getattr(config, "num_key_value_heads", None) or n_heads,
                "head_dim": getattr(config, "head_dim", None) or config.hidden_size // n_heads,
                "vocab_size": config.vocab_size,
                "max_position_embeddings": config.max_position_embeddings,
                "rms_norm_eps": getattr(config, "rms_norm_eps", None) or 1e-6,
                "rope_theta": rope_theta,
                "rope_scaling": rope_scaling,
            }
        except AttributeError as error:
            raise ValueError(
                f"cannot shape a draft head for a {config.model_type!r} target: {error}; "
                "expected a configuration with LLaMA-like size names"
            ) from error
        return cls(**{**values, **overrides})

    def to_llama(self) -> LlamaConfig:
        """The same shape as a one-layer ``LlamaConfig``, for transformers' own modules."""
        rope = {"rope_type": "default", **(self.rope_scaling or {}), "rope_theta": self.rope_theta}
        return LlamaConfig(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab_size,
            max_position_embeddings=self.max_position_embeddings,
            rms_norm_eps=self.rms_norm_eps,
            rope_parameters=rope,
            hidden_act=self.hidden_act,
            num_hidden_layers=1,
        )


def rope_of(config: PreTrainedConfig) -> tuple[float, dict[str, Any] | None]:
    """``rope_theta`` and the scaling dictionary (None for plain RoPE) of a configuration."""
    rope = dict(config.rope_parameters)
    if "rope_type" not in rope:
        raise ValueError(
            f"a {config.model_type!r} target has one RoPE per layer type ({', '.join(rope)}); "
            "a draft head has one layer and needs a single RoPE"
        )
    theta = float(rope.pop("rope_theta"))
    rope.pop("partial_rotary_factor", None)
    return theta, (None if rope["rope_type"] == "default" else rope)
