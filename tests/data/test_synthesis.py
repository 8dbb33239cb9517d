from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from hasspec.data import Conversation, Prompt, TokenStore
from hasspec.data.magpie import MagpieSettings, MagpieSource
from hasspec.data.sources import AnswerSettings, PromptSource, Source
from hasspec.data.store import StoreMetadata
from hasspec.data.synthesis import Progress, write_store
from hasspec.data.template import ChatTemplate
from hasspec.target import Target

SETTINGS = AnswerSettings(max_new_tokens=12, max_context=200)
SAMPLED = AnswerSettings(max_new_tokens=12, max_context=200, temperature=0.8, seed=5)


@pytest.fixture
def chatty(tiny_target_factory: Callable[..., Target]) -> Target:
    """A target that ends its turns now and then, and writes no other special token."""
    target = tiny_target_factory(seed=3)
    bias_V = torch.zeros(target.vocab_size)
    bias_V[[0, 1, 3, 4]] = -1e4
    bias_V[2] = 1.0
    target.model.lm_head.bias = nn.Parameter(bias_V, requires_grad=False)
    return target


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{n}", (f"What is {n}?", "And " * (n % 5) + "why?")) for n in range(count)]


def run(target: Target, sources: list[Source], path: Path, **options: object) -> TokenStore:
    store = TokenStore.resume(path, StoreMetadata())
    options = {"rows": 4, "shard_size": 3} | options
    write_store(target, sources, store, options.pop("settings", SETTINGS), **options)
    return TokenStore.open(path)


def answers(template: ChatTemplate, conversation: Conversation) -> list[str]:
    return [
        template.answer_text(conversation.token_ids[start:end])
        for start, end in conversation.answer_spans
    ]


def test_the_spans_hold_what_the_target_wrote(chatty: Target, tmp_path: Path) -> None:
    template = ChatTemplate(chatty)
    store = run(chatty, [PromptSource(prompts(12), template, SETTINGS)], tmp_path / "s")
    assert [c.prompt_id for c in store] == [f"p{n}" for n in range(12)]
    ended = set()
    for conversation in store:
        assert len(conversation.answer_spans) == 2
        for start, end in conversation.answer_spans:
            ids = torch.tensor([conversation.token_ids[:end]])
            greedy = chatty.logits(chatty.features(ids))[0, start - 1 : -1].argmax(-1)
            assert greedy.tolist() == conversation.token_ids[start:end]
            last = conversation.token_ids[end - 1]
            assert last == 2 or end - start == SETTINGS.max_new_tokens
            ended.add(last == 2)
    assert ended == {True, False}


def test_the_turns_are_joined_as_the_template_joins_them(chatty: Target, tmp_path: Path) -> None:
    template = ChatTemplate(chatty)
    asked = prompts(12)
    store = run(chatty, [PromptSource(asked, template, SETTINGS)], tmp_path / "s")
    for prompt, conversation in zip(asked, store, strict=True):
        first, second = answers(template, conversation)
        messages = [
            {"role": "user", "content": prompt.turns[0]},
            {"role": "assistant", "content": first},
            {"role": "user", "content": prompt.turns[1]},
        ]
        expected = template.render(messages) + second
        text = template.text(conversation.token_ids)
        assert text == expected + ("<|im_end|>" if conversation.finish == "eos" else "")


def test_first_turn_only(chatty: Target, tmp_path: Path) -> None:
    source = PromptSource(prompts(3), ChatTemplate(chatty), SETTINGS, turns=False)
    assert [len(c.answer_spans) for c in run(chatty, [source], tmp_path / "s")] == [1, 1, 1]


def test_a_system_message_is_shown(chatty: Target, tmp_path: Path) -> None:
    template = ChatTemplate(chatty)
    source = PromptSource([Prompt("p", ("Hi",), "Be brief.")], template, SETTINGS)
    [conversation] = run(chatty, [source], tmp_path / "s")
    assert template.text(conversation.token_ids).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi"
    )


@pytest.mark.parametrize(
    ("kind", "settings"), [("prompts", SETTINGS), ("prompts", SAMPLED), ("both", SAMPLED)]
)
def test_an_interrupted_run_goes_on_to_the_same_store(
    chatty: Target, tmp_path: Path, kind: str, settings: AnswerSettings
) -> None:
    template = ChatTemplate(chatty)

    def sources() -> list[Source]:
        magpie = MagpieSettings(max_tokens=40, min_words=1)
        every: list[Source] = []
        if kind != "magpie":
            every.append(PromptSource(prompts(11), template, settings))
        if kind != "prompts":
            every.append(MagpieSource(11, template, settings, magpie))
        return every

    whole = run(chatty, sources(), tmp_path / "whole", settings=settings)
    assert whole.metadata.complete
    reports = 0

    def interrupt(progress: Progress) -> None:
        nonlocal reports
        reports += 1
        if reports in (4, 8):
            # What a killed run leaves: whole shards and their index.
            shutil.copytree(tmp_path / "cut", tmp_path / f"killed-{reports}")
        if reports in (5, 9):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(chatty, sources(), tmp_path / "cut", settings=settings, report=interrupt)
        assert not TokenStore.open(tmp_path / "cut").metadata.complete
    resumed = [
        run(chatty, sources(), tmp_path / name, settings=settings, rows=rows)
        for name, rows in (("cut", 4), ("killed-4", 1), ("killed-8", 9))
    ]
    for store in resumed:
        assert list(store) == list(whole)
        assert store.fingerprint() == whole.fingerprint()
        assert store.metadata.progress == whole.metadata.progress
    again = run(chatty, sources(), tmp_path / "cut", settings=settings)
    assert list(again) == list(whole)


def test_a_prompt_beyond_the_context_is_counted(chatty: Target, tmp_path: Path) -> None:
    asked = [Prompt("a", ("Hi",)), Prompt("b", ("Hi " * 100,)), Prompt("c", ("Ho",))]
    store = run(chatty, [PromptSource(asked, ChatTemplate(chatty), SETTINGS)], tmp_path / "s")
    assert [c.prompt_id for c in store] == ["a", "c"]
    assert store.metadata.progress["prompts: rejected: prompt beyond the context"] == 1
    assert store.metadata.progress["prompts: position"] == 3


def test_a_conversation_ends_where_the_context_does(chatty: Target, tmp_path: Path) -> None:
    turn = "x" * 60
    source = PromptSource([Prompt("a", (turn,) * 4)], ChatTemplate(chatty), SETTINGS)
    [conversation] = run(chatty, [source], tmp_path / "s")
    assert conversation.finish == "context"
    assert len(conversation.token_ids) <= SETTINGS.max_context
    assert len(conversation.answer_spans) < 4


def test_a_context_beyond_the_target_is_refused(chatty: Target, tmp_path: Path) -> None:
    settings = AnswerSettings(max_context=257)
    source = PromptSource(prompts(1), ChatTemplate(chatty), settings)
    with pytest.raises(ValueError, match="max_context 257 is beyond the 256 tokens"):
        run(chatty, [source], tmp_path / "s", settings=settings)


@pytest.mark.parametrize(
    "arguments",
    [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"max_context": 1}],
)
def test_impossible_settings_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        AnswerSettings(**arguments)


def test_magpie_asks_what_the_target_wrote(chatty: Target, tmp_path: Path) -> None:
    template = ChatTemplate(chatty)
    systems = ("You write code.", "You write verse.")
    magpie = MagpieSettings(max_tokens=40, min_words=1, systems=systems)
    source = MagpieSource(10, template, SETTINGS, magpie)
    store = run(chatty, [source], tmp_path / "s")
    assert len(store) == 10
    counts = store.metadata.progress
    rejected = sum(count for name, count in counts.items() if "rejected" in name)
    assert counts["magpie: kept"] == 10 and rejected > 0
    assert counts["magpie: position"] == 10 + rejected
    assert {c.source for c in store} == {"magpie-system-0", "magpie-system-1"}
    texts = [template.text(c.token_ids[: c.answer_spans[0][0]]) for c in store]
    assert len(set(texts)) == 10
    for text in texts:
        assert text.startswith("<|im_start|>user\n")
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert "You write" not in text
    # The systems were shown while the user turns were written: other turns without them.
    plain = MagpieSource(10, template, SETTINGS, MagpieSettings(max_tokens=40, min_words=1))
    assert list(run(chatty, [plain], tmp_path / "t")) != list(store)


def test_magpie_rejects_and_counts(chatty: Target) -> None:
    source = MagpieSource(5, ChatTemplate(chatty), SETTINGS)
    encode = source.template.encode

    def reason(user: str, finish: str = "eos") -> str:
        script = source.next_script()
        script.first()
        following = script.following(encode(user) + [2], finish)
        assert (following is None) == bool(script.rejected)
        if following:
            script.following(encode("fine") + [2], "eos")
        return source.judge(script)

    assert reason("a good question") == ""
    assert reason(" A  good QUESTION\n") == "duplicate user turn"
    assert reason("another good question") == ""
    assert reason("two words") == "user turn too short"
    assert reason("  ") == "empty user turn"
    assert reason("cut off in the", "length") == "user turn too long"
    assert reason("one<|im_start|>user two three") == "special token in the user turn"
    assert reason("word " * 60) == "user turn too long"


def test_magpie_gives_up_where_nothing_passes(chatty: Target, tmp_path: Path) -> None:
    magpie = MagpieSettings(max_tokens=1, min_words=50)
    source = MagpieSource(1, ChatTemplate(chatty), SETTINGS, magpie)
    with pytest.raises(ValueError, match="passed the checks"):
        run(chatty, [source], tmp_path / "s", rows=64)


def test_magpie_needs_a_temperature() -> None:
    with pytest.raises(ValueError, match="above 0"):
        MagpieSettings(temperature=0)
