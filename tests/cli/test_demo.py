"""The demo on a tiny target: it must run, compare, and find a difference."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import torch
from click.testing import Result
from rich.console import Console
from rich.text import Text

from hasspec.cli.demo import PROMPTS
from hasspec.cli.race import Lane, race
from hasspec.cli.race_view import show_race
from hasspec.cli.verdict import Judge
from hasspec.decoding import Decoder, Generation
from hasspec.draft import DraftConfig, DraftHead
from hasspec.target import Target

Run = Callable[..., Result]
N_PROMPTS = 5
MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def demo(
    run: Run, tiny_target_folder: Path, tiny_head_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    monkeypatch.setattr("hasspec.cli.demo.PROMPTS", PROMPTS[:N_PROMPTS])

    def invoke(*arguments: object) -> Result:
        tiny = ("--target", tiny_target_folder, "--head", tiny_head_folder)
        return run("demo", *tiny, "--max-new-tokens", 6, *arguments)

    return invoke


@pytest.fixture
def lanes(tiny_target: Target) -> list[Lane]:
    torch.manual_seed(0)
    head = DraftHead(DraftConfig.from_target(tiny_target.config)).eval()
    decoders = {"plain": Decoder(tiny_target), "with head": Decoder(tiny_target, head)}
    return [Lane(name, decoder, MESSAGES, 20) for name, decoder in decoders.items()]


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_runs_and_concludes(demo: Run, dtype: str) -> None:
    result = demo("--dtype", dtype)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    assert result.stdout.count("--- plain:") == result.stdout.count("--- with head:") == N_PROMPTS
    for shown in ("acceptance length τ", "tokens a second", "speedup, 95 %", "draft", "verify"):
        assert shown in result.stdout


def test_time_is_limited_and_what_is_left_out_is_said(demo: Run) -> None:
    result = demo("--seconds", 0)
    assert result.exit_code == 0, result.output
    assert f"{N_PROMPTS - 1} prompts left out" in result.stdout
    assert "too few prompts" in result.stdout


def test_a_difference_is_an_error(demo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from hasspec.decoding.session import Session

    honest = Session.round

    def lossy(self: Session) -> object:
        emitted, tree, accepted = honest(self)
        if self._drafter is not None:
            emitted[-1] = (emitted[-1] + 1) % 90 + 5
        return emitted, tree, accepted

    monkeypatch.setattr(Session, "round", lossy)
    for dtype in ("float32", "bfloat16"):
        result = demo("--dtype", dtype)
        assert result.exit_code == 1
        assert "ERROR" in result.stdout


def test_interruption_is_clean(demo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hasspec.cli.race.Lane.advance", interrupt)
    result = demo()
    assert result.exit_code == 130
    assert result.stdout.endswith("Interrupted.\n")


def test_missing_head_is_said_before_anything_is_loaded(run: Run) -> None:
    result = run("demo", "--head", "no-such-head")
    assert result.exit_code == 2
    assert "no shipped head is named 'no-such-head'" in result.stderr


def test_race_lets_the_slower_catch_up(lanes: list[Lane]) -> None:
    waits: list[str] = []
    plain, drafted = lanes

    def seen() -> None:
        # The lane that computed less may never be the one that waits.
        waits.append("plain" if plain.seconds <= drafted.seconds else "with head")

    advanced: list[str] = []
    for lane in lanes:
        step = lane.advance

        def recorded(step: Callable[[], None] = step, name: str = lane.name) -> None:
            advanced.append(name)
            step()

        lane.advance = recorded
    race(lanes, seen)
    both_running = advanced.index("with head"), len(advanced)
    assert plain.generation.token_ids == drafted.generation.token_ids
    assert all(lane.done and lane.generation.finish_reason for lane in lanes)
    assert both_running[0] == 1
    last_of = {name: len(advanced) - 1 - advanced[::-1].index(name) for name in set(advanced)}
    for turn in range(1, min(last_of.values()) + 1):
        assert advanced[turn] == waits[turn - 1]


def test_panels_show_both_answers(lanes: list[Lane], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = StringIO()
    show_race(Console(file=terminal, force_terminal=True, width=100, height=30), lanes)
    shown = Text.from_ansi(terminal.getvalue()).plain
    for lane in lanes:
        assert f"{lane.name}: {len(lane.generation.token_ids)} tokens" in shown
    text = "".join(text for text, _ in lanes[0].pieces)
    assert text == lanes[0].generation.text
    assert text.strip().split("\n")[-1][:20].strip() in shown


def test_judge_on_low_precision(tiny_target: Target) -> None:
    lower = Target.from_model(tiny_target.model.to(torch.bfloat16), tiny_target.tokenizer)
    answer = Decoder(lower).generate(MESSAGES, max_new_tokens=6)
    judge = Judge(lower)
    assert f"same {len(answer.token_ids)} tokens" in judge.verdict(answer, answer)
    with torch.inference_mode():
        logit_V = lower.logits(lower.features(torch.tensor([answer.prompt_ids]))[0, -1]).float()
    order = logit_V.argsort(descending=True)
    near = Generation(answer.prompt_ids, [int(order[0])])
    worst = Generation(answer.prompt_ids, [int(order[-1])])
    assert not judge.wrong
    assert "ERROR: token 1" in judge.verdict(near, worst)
    assert judge.wrong
