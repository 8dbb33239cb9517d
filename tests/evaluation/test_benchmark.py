"""The benchmark on a tiny target: who sees what, in which order, and what is counted."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from hasspec.data.prompts import Prompt
from hasspec.data.template import ChatTemplate
from hasspec.decoding import Decoder, Sampling, TreeSpec
from hasspec.draft import DraftConfig, DraftHead
from hasspec.evaluation import Benchmark, BenchmarkSettings, PromptSet, summarise
from hasspec.evaluation.benchmark import PromptResult
from hasspec.evaluation.summary import per_prompt
from hasspec.target import Target

PROMPTS = [
    Prompt("one", ("Hello", "And then?", "Why?"), source="a"),
    Prompt("two", ("abc",), system="Be brief.", source="a"),
    *[Prompt(f"more-{n}", ("xyz" * (n + 1),), source="a") for n in range(4)],
]
SETS = [PromptSet("a.jsonl", PROMPTS), PromptSet("b.jsonl", [Prompt("one", ("Hi",), source="b")])]


def make_head(target: Target, seed: int) -> DraftHead:
    torch.manual_seed(seed)
    return DraftHead(DraftConfig.from_target(target.config)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tiny_target(tiny_target_factory: Callable[..., Target]) -> Target:
    return tiny_target_factory()


@pytest.fixture(scope="module")
def heads(tiny_target: Target) -> dict[str, DraftHead]:
    return {"first": make_head(tiny_target, 1), "second": make_head(tiny_target, 2)}


def settings(**changes: object) -> BenchmarkSettings:
    return BenchmarkSettings(**{"max_new_tokens": 8, "tree": TreeSpec(3, 3, 8), **changes})


@pytest.fixture(scope="module")
def results(tiny_target: Target, heads: dict[str, DraftHead]) -> list[PromptResult]:
    return Benchmark(tiny_target, heads, settings()).run(SETS)


def test_every_turn_is_decoded_by_every_variant(results: list[PromptResult]) -> None:
    assert [r.prompt_id for r in results] == [p.prompt_id for s in SETS for p in s.prompts]
    names = ["plain", "first", "second"]
    for result, prompt in zip(results, [p for s in SETS for p in s.prompts], strict=True):
        assert list(result.answers) == names
        assert all(len(answers) == len(prompt.turns) for answers in result.answers.values())
        assert all(sorted(order) == sorted(names) for order in result.order)
    # No variant always goes first.
    assert len({order[0] for result in results for order in result.order}) > 1


def test_order_follows_the_seed(tiny_target: Target, heads: dict[str, DraftHead]) -> None:
    def orders(seed: int) -> list[list[list[str]]]:
        measured = Benchmark(tiny_target, heads, settings(max_new_tokens=2, seed=seed)).run(SETS)
        return [result.order for result in measured]

    assert orders(1) == orders(1)
    assert orders(1) != orders(2)


def test_conversation_goes_on_with_the_plain_answer(
    tiny_target: Target, heads: dict[str, DraftHead], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    generate = Decoder.generate

    def recording(self: Decoder, prompt: list[int], **options: object) -> object:
        asked.append(list(prompt))
        return generate(self, prompt, **options)

    monkeypatch.setattr(Decoder, "generate", recording)
    hot = Sampling(temperature=1.5, seed=3)
    benchmark = Benchmark(tiny_target, heads, settings(sampling=hot))
    result = benchmark.run([PromptSet("a.jsonl", PROMPTS[:1])])[0]

    n_variants = len(benchmark.variants)
    by_turn = [asked[n_variants * (t + 1) : n_variants * (t + 2)] for t in range(3)]
    template = ChatTemplate(tiny_target)
    messages = [{"role": "user", "content": "Hello"}]
    expected = template.prompt_ids(messages)
    for turn, prompts in enumerate(by_turn):
        assert prompts == [expected] * n_variants
        answer = result.answers["plain"][turn].token_ids
        if turn < 2:
            user = PROMPTS[0].turns[turn + 1]
            expected = [*expected, *answer, *template.continuation(messages, answer, user)]
            messages += [
                {"role": "assistant", "content": template.answer_text(answer)},
                {"role": "user", "content": user},
            ]
    assert len(asked) == n_variants * 4


def test_greedy_answers_are_identical(results: list[PromptResult]) -> None:
    summary = summarise(results)
    assert summary["heads"]["first"]["identical"] == summary["prompts"] == 7


def test_seeded_samples_are_identical_but_differ_by_prompt(
    tiny_target: Target, heads: dict[str, DraftHead]
) -> None:
    sampling = Sampling(temperature=1.0, seed=5)
    same = [Prompt("x", ("abc",)), Prompt("y", ("abc",))]
    measured = Benchmark(tiny_target, heads, settings(sampling=sampling)).run(
        [PromptSet("a", same)]
    )
    assert summarise(measured)["heads"]["second"]["identical"] == 2
    first, second = (result.answers["plain"][0].token_ids for result in measured)
    assert first != second


def test_summary_pools_sums(results: list[PromptResult]) -> None:
    summary = summarise(results, seed=1)
    head = summary["heads"]["first"]
    answers = [answer for result in results for answer in result.answers["first"]]
    assert head["tokens"] == sum(len(answer.token_ids) for answer in answers)
    assert head["tau"] == sum(a.counts.emitted for a in answers) / sum(
        a.counts.forwards for a in answers
    )
    assert head["tokens_per_second"] == head["tokens"] / sum(a.seconds for a in answers)
    assert sum(head["time"].values()) == pytest.approx(head["seconds"])
    plain = summary["plain"]
    parts = [group["plain"]["tokens"] for group in summary["by_prompts"].values()]
    assert plain["tokens"] == sum(parts)
    taus = [group["heads"]["first"]["tau"] for group in summary["by_prompts"].values()]
    assert head["tau_mean_over_files"] == pytest.approx(sum(taus) / 2)
    # One prompt alone supports no claim.
    assert not summary["by_prompts"]["b.jsonl"]["heads"]["first"]["speedup"]["significant"]


def test_identical_counts_prompts_and_not_turns(results: list[PromptResult]) -> None:
    changed = deepcopy(results)
    changed[0].answers["second"][1].token_ids.append(0)
    heads = summarise(changed)["heads"]
    assert (heads["first"]["identical"], heads["second"]["identical"]) == (7, 6)


def test_records_keep_the_order(results: list[PromptResult]) -> None:
    record = per_prompt(results)[0]
    assert record["order"] == results[0].order
    plain = results[0].answers["plain"]
    assert [turn["tokens"] for turn in record["answers"]["plain"]] == [
        len(answer.token_ids) for answer in plain
    ]


def test_tau_only_leaves_plain_decoding_out(
    tiny_target: Target, heads: dict[str, DraftHead], results: list[PromptResult]
) -> None:
    benchmark = Benchmark(tiny_target, heads, settings(tau_only=True))
    assert benchmark.variants == ["first", "second"]
    summary = summarise(benchmark.run(SETS))
    assert summary["plain"] is None
    assert summary["heads"]["first"]["speedup"] is summary["heads"]["first"]["identical"] is None
    # Greedy heads emit the plain answer, so the conversations and the counts are the same.
    assert summary["heads"]["first"]["tau"] == summarise(results)["heads"]["first"]["tau"]


def test_rescoring_finds_greedy_answers_exact(
    tiny_target: Target, heads: dict[str, DraftHead]
) -> None:
    measured = Benchmark(tiny_target, heads, settings(rescore="float32")).run(SETS[:1])
    summary = summarise(measured)
    for variant in (summary["plain"], summary["heads"]["first"]):
        assert variant["flips"]["tokens"] == variant["tokens"]
        assert (variant["flips"]["flips"], variant["flips"]["per_1000"]) == (0, 0)


def test_a_prompt_that_does_not_fit_is_named(
    tiny_target: Target, heads: dict[str, DraftHead]
) -> None:
    sets = [PromptSet("long.jsonl", [Prompt("ok", ("a",)), Prompt("big", ("b" * 300,))])]
    with pytest.raises(ValueError, match="long.jsonl, prompt big, turn 1: .* at most 256"):
        Benchmark(tiny_target, heads, settings()).run(sets)


def test_interruption_keeps_whole_prompts(tiny_target: Target, heads: dict[str, DraftHead]) -> None:
    turns: list[object] = []

    def interrupt(prompt_set: PromptSet, answered: object) -> None:
        turns.append(answered)
        if len(turns) == 5:
            raise KeyboardInterrupt

    measured = Benchmark(tiny_target, heads, settings()).run(SETS, interrupt)
    # The fifth turn is the third prompt's only one, which was told of but not yet finished.
    assert [result.prompt_id for result in measured] == ["one", "two"]
    with pytest.raises(ValueError, match="no prompt was measured"):
        summarise([])


def test_refuses_nothing_to_measure(tiny_target: Target) -> None:
    with pytest.raises(ValueError, match="at least one head"):
        Benchmark(tiny_target, {}, settings(tau_only=True))
    with pytest.raises(ValueError, match="no head may be named 'plain'"):
        Benchmark(tiny_target, {"plain": make_head(tiny_target, 1)}, settings())


def test_prompt_set_takes_the_first_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"turns": ["a", "b"]}\n{"prompt": "c"}\n{"prompt": "d"}\n')
    prompt_set = PromptSet.read(file, limit=2)
    assert (len(prompt_set.prompts), prompt_set.n_turns) == (2, 3)
    file.write_text('{"turns": ["a"]}\n{"turns": \n')
    with pytest.raises(ValueError, match=r"prompts\.jsonl:2"):
        PromptSet.read(file)
