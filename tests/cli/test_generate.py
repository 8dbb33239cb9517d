"""``hasspec generate`` and ``hasspec chat`` on a tiny target."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from hasspec.decoding import Decoder, Sampling
from hasspec.target import Target

Run = Callable[..., Result]


@pytest.fixture
def target(tiny_target_folder: Path) -> Target:
    return Target.load(str(tiny_target_folder))


def test_streams_the_answer_and_nothing_else(
    run: Run, target: Target, tiny_target_folder: Path, tiny_head_folder: Path
) -> None:
    expected = Decoder(target).generate([{"role": "user", "content": "Hello"}], max_new_tokens=12)
    common = ("generate", tiny_target_folder, "--prompt", "Hello", "--max-new-tokens", 12)
    plain = run(*common)
    drafted = run(*common, "--head", tiny_head_folder)
    assert plain.stdout == drafted.stdout == expected.text + "\n"
    assert f"{len(expected.token_ids)} tokens in" in drafted.stderr
    assert re.search(r"τ \d\.\d\d", drafted.stderr)
    assert f"ended by {expected.finish_reason}" in drafted.stderr
    assert "τ 1.00" in plain.stderr


def test_raw_text_sampling_and_stop(
    run: Run, target: Target, tiny_target_folder: Path, tmp_path: Path
) -> None:
    sampling = Sampling(temperature=1.2, top_k=40, top_p=0.95, seed=4)
    expected = Decoder(target).generate("ab", max_new_tokens=30, sampling=sampling)
    file = tmp_path / "prompt.txt"
    file.write_text("ab")
    options = ("--temperature", 1.2, "--top-k", 40, "--top-p", 0.95, "--seed", 4)
    common = ("generate", tiny_target_folder, "--raw", "--max-new-tokens", 30, *options)
    assert run(*common, "--prompt-file", file).stdout == expected.text + "\n"
    assert run(*common, input="ab").stdout == expected.text + "\n"
    stopped = run(*common, "--prompt", "ab", "--stop", expected.text[5])
    assert stopped.stdout == expected.text[: expected.text.index(expected.text[5])] + "\n"
    assert "ended by stop" in stopped.stderr


def test_mistakes(run: Run, tiny_target_folder: Path, tmp_path: Path) -> None:
    common = ("generate", tiny_target_folder)
    for arguments, message in (
        (("--prompt", ""), "--prompt is empty"),
        (("--prompt", "a", "--prompt-file", tmp_path / "x"), "not both"),
        (("--prompt-file", tmp_path / "x"), "no such file"),
        (("--prompt", "a", "--raw", "--system", "b"), "--system belongs to a chat"),
        (("--prompt", "a", "--top-p", "0"), "top_p must be in (0, 1]"),
        (("--prompt", "a" * 300), "at most 256"),
        (("--prompt", "a", "--head", tmp_path / "x"), "no shipped head"),
    ):
        result = run(*common, *arguments)
        assert result.exit_code == 2, arguments
        assert message in result.stderr
    assert "standard input is empty" in run(*common, input="").stderr


def test_chat_remembers_until_reset(
    run: Run, target: Target, tiny_target_folder: Path, tiny_head_folder: Path
) -> None:
    decoder = Decoder(target)

    def answer(messages: list[dict[str, str]]) -> str:
        return decoder.generate(messages, max_new_tokens=8).text

    first = [{"role": "user", "content": "Hello"}]
    second = [
        *first,
        {"role": "assistant", "content": answer(first)},
        {"role": "user", "content": "More"},
    ]
    assert answer(second) != answer(second[-1:])
    typed = "Hello\nMore\n\n/help\n/reset\nMore\n/exit\nnever read\n"
    options = ("--max-new-tokens", 8, "--head", tiny_head_folder)
    result = run("chat", tiny_target_folder, *options, input=typed)
    assert result.exit_code == 0, result.output
    shown = result.stdout.replace("> ", "")
    assert shown == "".join(f"{answer(m)}\n" for m in (first, second, second[-1:]))
    assert "unknown command '/help'" in result.stderr
    assert result.stderr.count("ended by") == 3


def test_chat_survives_an_outgrown_context(run: Run, tiny_target_folder: Path) -> None:
    typed = f"{'a' * 300}\nHello\n"
    result = run("chat", tiny_target_folder, "--max-new-tokens", 4, input=typed)
    assert result.exit_code == 0, result.output
    assert "error: the prompt has" in result.stderr
    assert result.stderr.count("ended by") == 1


def test_ctrl_c_stops_the_answer_and_not_the_chat(
    run: Run, tiny_target_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hasspec.decoding.session import Session

    one_round, n_rounds = Session.round, []

    def interrupted(self: Session) -> object:
        n_rounds.append(1)
        if len(n_rounds) == 3:
            raise KeyboardInterrupt
        return one_round(self)

    monkeypatch.setattr(Session, "round", interrupted)
    result = run("chat", tiny_target_folder, "--max-new-tokens", 6, input="Hello\nMore\n")
    assert result.exit_code == 0, result.output
    assert "3 tokens in" in result.stderr
    assert "ended by Ctrl-C" in result.stderr
    assert "6 tokens in" in result.stderr
