"""Any Hugging Face causal LM as a target: features, head, and a forward over a tree."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from hasspec.target.cache import RaggedCache, SequenceCache
from hasspec.target.checks import refuse_unservable
from hasspec.target.loading import load_causal_lm, load_tokenizer
from hasspec.target.masks import attention_mask_for, causal_mask

EMBEDDED_ALIAS = "smollm2-135m"

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """``"bfloat16"`` to ``torch.bfloat16``; ``ValueError`` for a name that is not a dtype."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


class Target:
    """A frozen causal LM.

    A *feature* is the hidden state after the model's final norm, exactly what enters its
    ``lm_head`` (arXiv 2408.15766, section 2).

    Attributes:
        name: the hub id, folder or alias it was loaded from.
        model: the transformers model, in eval mode, its parameters frozen.
        tokenizer: its tokenizer, or None.
        config: the model's text configuration.
        max_length: most tokens of one sequence, prompt and answer together.
        eos_ids: the ids that end an answer.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, name: str
    ):
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.config = model.config.get_text_config(decoder=True)
        self._body: nn.Module = model.get_decoder()
        self._head: nn.Module = model.get_output_embeddings()
        self._embedding: nn.Module = model.get_input_embeddings()
        self.eos_ids = _eos_ids(model, tokenizer)
        self.max_length = _max_length(self.config)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: str | torch.dtype = "float32",
        device: str = "cpu",
        device_map: str | dict[str, str | int] | None = None,
    ) -> Target:
        """Load a target from a hub id, a local folder or the alias ``smollm2-135m``.

        Args:
            device: where all of it goes.
            device_map: for a model too large for one device, how accelerate spreads its modules,
                ``"auto"`` or a map from module names; the output layer must be on a device, not
                offloaded.

        Raises:
            ValueError: nothing loadable is there, or the model cannot serve (with the reason).
        """
        source = str(name)
        if name == EMBEDDED_ALIAS:
            from hasspec.target.embedded import embedded_model_path

            source = str(embedded_model_path())
        torch_dtype = parse_dtype(dtype)
        model = load_causal_lm(source, str(name), torch_dtype, device, device_map)
        return cls.from_model(model, load_tokenizer(source, str(name)), name=str(name))

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        name: str = "model",
    ) -> Target:
        """Wrap a loaded model after probing that it can serve.

        Raises:
            ValueError: encoder-decoder, no linear head on the final hidden state, or attention
                that does not follow a given mask and cache; the message says which.
        """
        refuse_unservable(model, name)
        return cls(model, tokenizer, name)

    @property
    def device(self) -> torch.device:
        return self.head_weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head_weight.dtype

    @property
    def hidden_size(self) -> int:
        return self.head_weight.shape[1]

    @property
    def vocab_size(self) -> int:
        return self.head_weight.shape[0]

    @property
    def n_layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def head_weight(self) -> Tensor:
        """``lm_head`` weight, ``[V, D]``."""
        return self._head.weight

    @property
    def head_bias(self) -> Tensor | None:
        """``lm_head`` bias, ``[V]``, or None."""
        return getattr(self._head, "bias", None)

    def features(
        self,
        ids_BT: Tensor,
        *,
        cache: Cache | None = None,
        mask: Tensor | None = None,
        position_BT: Tensor | None = None,
    ) -> Tensor:
        """Features of the given tokens, ``[B, T, D]`` in the model's dtype.

        Args:
            ids_BT: int64 token ids.
            cache: where keys and values are read and written; None for a plain forward.
            mask: bool ``[B, 1, T, S]``, True where a query sees a key; ``[B, T]`` for padding;
                None for causal over the cache and these tokens.
            position_BT: RoPE positions; None for those following the cache.

        Raises:
            ValueError: a :class:`RaggedCache` without mask and positions, which follow from each
                row's own length, or a cache that is full.
        """
        if isinstance(cache, RaggedCache) and (mask is None or position_BT is None):
            raise ValueError(
                "rows of a RaggedCache have different lengths: give mask=cache.mask(n_tokens) and "
                "position_BT from cache.length_R"
            )
        n_tokens = ids_BT.shape[1]
        if mask is None and isinstance(cache, SequenceCache) and cache.length and n_tokens > 1:
            mask = causal_mask(n_tokens, cache.length, ids_BT.device)
        if mask is not None and mask.dim() == 4:
            mask = attention_mask_for(self.model, mask, self.dtype)
        return self._body(
            input_ids=ids_BT,
            attention_mask=mask,
            position_ids=position_BT,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state.to(self.device)

    def logits(self, feature: Tensor) -> Tensor:
        """``lm_head`` on features ``[..., D]``: logits ``[..., V]`` in the model's dtype."""
        return self._head(feature)

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of token ids, ``[..., D]``."""
        return self._embedding(ids).to(self.device)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation up to the opening of the assistant's answer."""
        if self.tokenizer is None or not self.tokenizer.chat_template:
            raise ValueError(
                f"target {self.name!r} has no chat template; give token ids or raw text instead"
            )
        encoded = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return list(encoded)

    def fingerprint(self) -> str:
        """Hash of a sample of every weight, the same for float32 and bfloat16 loads."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, weight in _loaded_parameters(self.model):
            flat = weight.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // 256)].to("cpu", torch.bfloat16)
            digest.update(name.encode())
            digest.update(str(tuple(weight.shape)).encode())
            digest.update(sample.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


def _loaded_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """``named_parameters``, with the weights of offloaded modules read from where they lie."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        with align_module_device(module):
            for name, weight in module.named_parameters(recurse=False):
                if id(own[name]) not in seen:
                    seen.add(id(own[name]))
                    yield f"{prefix}.{name}", weight


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    ids: set[int] = set()
    generation = getattr(model, "generation_config", None)
    for value in (
        getattr(generation, "eos_token_id", None),
        model.config.get_text_config(decoder=True).eos_token_id,
        getattr(tokenizer, "eos_token_id", None),
    ):
        ids.update([value] if isinstance(value, int) else value or [])
    return frozenset(ids)


def _max_length(config: Any) -> int:
    longest = getattr(config, "max_position_embeddings", None) or 2**31
    window = getattr(config, "sliding_window", None)
    windowed = getattr(config, "use_sliding_window", True)
    # The caches here keep every token and the masks know no window: up to the window's length
    # both are the same, beyond it they would not be.
    return min(longest, window) if window and windowed else longest
