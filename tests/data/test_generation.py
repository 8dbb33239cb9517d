from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from hasspec.data.generation import Script, Stage, generate
from hasspec.data.sampling import sample, uniform_noise
from hasspec.target import Target

STOP = frozenset([5, 9])


class Given:
    """Given stages, one after the other; records what was written."""

    def __init__(self, number: int, *stages: Stage | Callable[[list[int]], Stage]):
        self.number = number
        self.stages = list(stages)
        self.results: list[tuple[list[int], str]] = []

    def first(self) -> Stage:
        return self.stages.pop(0)

    def following(self, written: list[int], finish: str) -> Stage | None:
        self.results.append((written, finish))
        if not self.stages:
            return None
        stage = self.stages.pop(0)
        return stage(written) if callable(stage) else stage


def source(scripts: list[Given]) -> Callable[[], Given | None]:
    remaining: Iterator[Given] = iter(scripts)
    return lambda: next(remaining, None)


def prompts(count: int, *, longest: int = 40, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(10, 101, (n,), generator=generator).tolist() for n in lengths]


def reference(target: Target, stage: Stage, capacity: int) -> list[int]:
    """transformers' own greedy generation of one prompt alone."""
    ids = torch.tensor([stage.ids])
    written = target.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=min(stage.max_new_tokens, capacity - len(stage.ids)),
        eos_token_id=sorted(stage.stop_ids),
        pad_token_id=0,
    )
    return written[0, len(stage.ids) :].tolist()


@pytest.mark.parametrize(
    ("family", "rows", "refill"),
    [
        ("llama", 1, 1),
        ("llama", 5, 1),
        ("llama", 20, 20),
        ("smollm2", 7, 3),
        ("qwen2", 7, 3),
        ("qwen3", 7, 3),
    ],
)
def test_greedy_rows_are_what_transformers_generates(
    tiny_target_factory: Callable[..., Target], family: str, rows: int, refill: int
) -> None:
    target = tiny_target_factory(family)
    scripts = [Given(n, Stage(ids, 24, STOP)) for n, ids in enumerate(prompts(14))]
    stages = [script.stages[0] for script in scripts]
    ended = list(generate(target, source(scripts), rows=rows, capacity=48, refill=refill))
    assert sorted(script.number for script in ended) == list(range(14))
    finishes = set()
    for script in ended:
        stage = stages[script.number]
        [(written, finish)] = script.results
        assert written == reference(target, stage, 48)
        finishes.add(finish)
        if finish == "eos":
            assert written[-1] in STOP
        elif finish == "length":
            assert len(written) == 24
        else:
            assert finish == "context" and len(stage.ids) + len(written) == 48
        assert not STOP & set(written[:-1])
    assert finishes == {"eos", "length", "context"}


def test_a_stage_that_goes_on_uses_what_the_row_holds(
    tiny_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[int] = []
    features = Target.features

    def counting(self: Target, ids_BT: torch.Tensor, **arguments: object) -> torch.Tensor:
        fed.append(ids_BT.shape[1])
        return features(self, ids_BT, **arguments)

    first, between, fresh = prompts(3, longest=30, seed=1)
    script = Given(
        0,
        Stage(first, 6, frozenset()),
        lambda written: Stage(first + written + between, 6, frozenset()),
        Stage(fresh, 6, frozenset()),
    )
    monkeypatch.setattr(Target, "features", counting)
    list(generate(tiny_target, source([script]), rows=1, capacity=128))
    # The last written token was never fed, so it goes in front of what follows it.
    assert [width for width in fed if width > 1] == [len(first), len(between) + 1, len(fresh)]
    monkeypatch.undo()
    written = [result for result, _ in script.results]
    assert written[0] == reference(tiny_target, Stage(first, 6, frozenset()), 128)
    going_on = first + written[0] + between
    assert written[1] == reference(tiny_target, Stage(going_on, 6, frozenset()), 128)
    assert written[2] == reference(tiny_target, Stage(fresh, 6, frozenset()), 128)


@pytest.mark.parametrize("refill", [1, 4])
def test_rows_that_wait_to_go_on_keep_what_they_hold(tiny_target: Target, refill: int) -> None:
    """Idle slots are decoded along; that must not touch a conversation that waits there."""
    firsts, betweens = prompts(9, longest=30), prompts(9, longest=20, seed=1)

    def script(n: int) -> Given:
        return Given(
            n,
            Stage(firsts[n], 3 + n, frozenset()),
            lambda written: Stage(firsts[n] + written + betweens[n], 15 - n, frozenset()),
        )

    ended = list(
        generate(
            tiny_target, source([script(n) for n in range(9)]), rows=6, capacity=96, refill=refill
        )
    )
    for one in ended:
        n = one.number
        (written, _), (more, _) = one.results
        assert written == reference(tiny_target, Stage(firsts[n], 3 + n, frozenset()), 96)
        ids = firsts[n] + written + betweens[n]
        assert more == reference(tiny_target, Stage(ids, 15 - n, frozenset()), 96)


def test_a_sampled_conversation_is_the_same_in_any_batch(tiny_target: Target) -> None:
    def run(rows: int, seed: int) -> dict[int, list[int]]:
        scripts = [
            Given(n, Stage(ids, 16, STOP, 0.9 if n % 3 else 0.0, 0.9 if n % 2 else 1.0, (seed, n)))
            for n, ids in enumerate(prompts(12))
        ]
        ended = generate(tiny_target, source(scripts), rows=rows, capacity=64)
        return {script.number: script.results[0][0] for script in ended}

    alone = run(1, seed=0)
    assert run(5, seed=0) == alone
    other = run(5, seed=1)
    assert all((other[n] == alone[n]) for n in range(0, 12, 3))
    assert any(other[n] != alone[n] for n in range(12))


def test_a_source_is_asked_again_after_it_had_none(tiny_target: Target) -> None:
    waiting = [Given(n, Stage(ids, 4, STOP)) for n, ids in enumerate(prompts(6))]
    open_for = 1

    def next_script() -> Given | None:
        nonlocal open_for
        if open_for and waiting:
            open_for -= 1
            return waiting.pop(0)
        return None

    numbers = []
    for script in generate(tiny_target, next_script, rows=4, capacity=64):
        numbers.append(script.number)
        open_for += 1
    assert numbers == list(range(6))


@pytest.mark.parametrize(
    "stage", [Stage([], 4, STOP), Stage([10] * 16, 4, STOP), Stage([10], 0, STOP)]
)
def test_a_stage_without_room_is_refused(tiny_target: Target, stage: Stage) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        list(generate(tiny_target, source([Given(0, stage)]), rows=2, capacity=16))


def test_given_scripts_are_scripts() -> None:
    script: Script = Given(0, Stage([1], 1, STOP))
    assert script.first().ids == [1]


def test_sample_follows_the_distribution() -> None:
    """Over a fine grid of uniform numbers the frequencies are the probabilities."""
    logit_V = torch.tensor([1.0, -2.0, float("-inf"), 0.5, 3.0])
    count = 20_000
    uniform_B = (torch.arange(count) + 0.5) / count
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.5, 0.9)):
        drawn = sample(
            logit_V.expand(count, -1),
            torch.full((count,), temperature),
            torch.full((count,), top_p),
            uniform_B,
        )
        expected = torch.softmax(logit_V.double() / temperature, -1)
        order = expected.argsort(descending=True)
        kept = expected[order].cumsum(0) - expected[order] < top_p
        expected[order[~kept]] = 0
        expected /= expected.sum()
        found = torch.bincount(drawn, minlength=5) / count
        assert torch.allclose(found.double(), expected, atol=2 / count)


def test_sample_never_draws_an_impossible_token_at_the_ends() -> None:
    logit_BV = torch.tensor([[float("-inf"), 0.0, 0.1, float("-inf")]]).expand(2, -1)
    largest = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    uniform_B = torch.stack([torch.tensor(0.0), largest])
    assert sample(logit_BV, torch.ones(2), torch.ones(2), uniform_B).tolist() == [1, 2]


def test_top_p_beyond_the_candidates_looks_at_the_whole_vocabulary() -> None:
    """A flat distribution over 2,000 tokens: 90 % of it is more than the first candidates."""
    count, vocabulary = 2000, 2000
    drawn = sample(
        torch.zeros(count, vocabulary),
        torch.ones(count),
        torch.full((count,), 0.9),
        (torch.arange(count) + 0.5) / count,
    )
    assert abs(drawn.unique().numel() - 1800) <= 1


def test_noise_depends_on_its_key_alone() -> None:
    torch.manual_seed(0)
    one = uniform_noise(5, 0, "prompt", 1)
    torch.manual_seed(1)
    torch.rand(3)
    assert uniform_noise(5, 0, "prompt", 1) == one
    assert uniform_noise(5, 0, "prompt", 2) != one
    assert uniform_noise(3, 0, "prompt", 1) == one[:3]
