"""Load a causal language model and its tokenizer, or say why that cannot be done."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

# What transformers, safetensors and torch raise on files that are missing, damaged or of
# another kind than asked for.
_LOAD_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    SafetensorError,
    pickle.UnpicklingError,
)


def load_causal_lm(
    source: str,
    name: str,
    dtype: torch.dtype,
    device: str,
    device_map: str | dict[str, str | int] | None = None,
) -> PreTrainedModel:
    """The model of a hub id or local folder, complete, on the device or spread over several.

    Args:
        source: hub id or folder.
        name: what the user calls it, for messages.
        device_map: how accelerate spreads the modules, instead of ``device``.

    Raises:
        ValueError: nothing loadable is there, the model is an encoder-decoder, its weights are
            damaged, incomplete or of other shapes than its configuration, or there is no such
            device.
    """
    target_device = _parse_device(device)
    if source.startswith(("/", "./", "../", "~")) and not Path(source).is_dir():
        raise ValueError(f"there is no folder {source!r}; give the folder of a saved model")
    try:
        config = AutoConfig.from_pretrained(source)
        if config.is_encoder_decoder:
            raise ValueError("it is an encoder-decoder model, which has no single causal sequence")
        with _without_progress_bars():
            model, report = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=dtype,
                device_map=device_map,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with the names of the weights
            )
    except _LOAD_ERRORS as error:
        raise ValueError(
            f"cannot load {name!r} as a causal language model: {_first_line(error)}\n"
            "Give a hub id that is in reach, a local folder written by save_pretrained, "
            "or the alias 'smollm2-135m'."
        ) from error
    # Without this, transformers would leave such weights random.
    wrong = sorted(report["missing_keys"]) + [str(key[0]) for key in report["mismatched_keys"]]
    if wrong:
        raise ValueError(
            f"the checkpoint {name!r} does not fit its own config.json: {len(wrong)} weights are "
            f"missing or have another shape ({', '.join(wrong[:4])}{', …' if wrong[4:] else ''}); "
            "take the checkpoint and the config.json from the same source"
        )
    return model.to(target_device) if device_map is None else model


def load_tokenizer(source: str, name: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a hub id or local folder; None for a folder that has none.

    Raises:
        ValueError: there is a tokenizer, but it cannot be read.
    """
    folder = Path(source)
    files = ("tokenizer*", "vocab.*")
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in files):
        return None
    try:
        return AutoTokenizer.from_pretrained(source)
    except (*_LOAD_ERRORS, AttributeError, TypeError) as error:
        raise ValueError(
            f"cannot load the tokenizer of {name!r}: {_first_line(error)}\n"
            "Save it again with tokenizer.save_pretrained, or remove its files to work with token "
            "ids only."
        ) from error


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """A bar for a second's work would lie in the midst of whatever the caller prints."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _parse_device(device: str) -> torch.device:
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; give 'cpu', 'cuda' or 'cuda:N'") from error
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"there is no device {device!r}: torch sees {torch.cuda.device_count()} CUDA devices; "
            "give 'cpu' or one that it sees"
        )
    return parsed


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
