"""Tree decoding says what plain decoding says; plain decoding says what transformers says."""

from __future__ import annotations

import pytest
import torch

from hasspec.decoding import Decoder, Sampling, TreeSpec
from hasspec.decoding.drafting import Drafter
from hasspec.decoding.session import Session
from hasspec.draft import DraftConfig, DraftHead, DraftVocabulary
from hasspec.target import Target

TREES = ["6x10x60", "chain:4", "2x3x5", "4x4x12", "1x2x2", "3x2x1"]


def random_head(target: Target, seed: int = 0) -> DraftHead:
    torch.manual_seed(seed)
    head = DraftHead(DraftConfig.from_target(target.config))
    with torch.no_grad():
        # A head that says what it is fed drafts repetitions, some of which are accepted.
        head.fc.weight[:, target.hidden_size :] += torch.eye(target.hidden_size)
    return head.to(target.dtype).eval().requires_grad_(False)


def transformers_greedy(target: Target, prompt: list[int], max_new_tokens: int) -> list[int]:
    ids = target.model.generate(
        torch.tensor([prompt]), max_new_tokens=max_new_tokens, do_sample=False
    )
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", ["llama", "llama3", "qwen2", "qwen3", "mistral", "smollm2"])
def test_greedy_equals_transformers_for_every_family_and_tree(tiny_target_factory, family):
    target = tiny_target_factory(family)
    head = random_head(target)
    prompt = [5, 6, 7, 8, 9]
    expected = transformers_greedy(target, prompt, 40)
    assert Decoder(target).generate(prompt, max_new_tokens=40).token_ids == expected
    accepted = 0
    for tree in TREES:
        decoder = Decoder(target, head, tree=TreeSpec.parse(tree))
        generation = decoder.generate(prompt, max_new_tokens=40)
        assert generation.token_ids == expected, tree
        accepted += sum(r.accepted for r in generation.rounds)
    assert accepted > 0


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=3),
        Sampling(temperature=0.7, top_k=20, top_p=0.9, seed=4),
        Sampling(temperature=0.8, repetition_penalty=1.3, seed=5),
        Sampling(temperature=0.0, repetition_penalty=1.3),
    ],
    ids=str,
)
def test_a_seed_gives_the_same_tokens_with_and_without_any_head(tiny_target, sampling):
    plain = Decoder(tiny_target).generate([9, 8, 7], max_new_tokens=30, sampling=sampling)
    for seed in range(2):
        head = random_head(tiny_target, seed)
        for tree in TREES:
            decoder = Decoder(tiny_target, head, tree=TreeSpec.parse(tree))
            found = decoder.generate([9, 8, 7], max_new_tokens=30, sampling=sampling)
            assert found.token_ids == plain.token_ids


def test_greedy_with_a_penalty_equals_transformers(tiny_target):
    prompt = [9, 8, 7, 9]
    ids = tiny_target.model.generate(
        torch.tensor([prompt]), max_new_tokens=40, do_sample=False, repetition_penalty=1.4
    )
    sampling = Sampling(repetition_penalty=1.4)
    found = Decoder(tiny_target, random_head(tiny_target)).generate(
        prompt, max_new_tokens=40, sampling=sampling
    )
    assert found.token_ids == ids[0, len(prompt) :].tolist()


def test_other_seeds_give_other_tokens(tiny_target):
    answers = {
        tuple(
            Decoder(tiny_target)
            .generate([9, 8], max_new_tokens=12, sampling=Sampling(temperature=1.0, seed=seed))
            .token_ids
        )
        for seed in range(5)
    }
    assert len(answers) == 5


def test_reduced_draft_vocabulary_changes_acceptance_only(tiny_target):
    head = random_head(tiny_target)
    head.draft_vocab_N = torch.arange(0, 40)
    prompt = [5, 6, 7]
    plain = Decoder(tiny_target).generate(prompt, max_new_tokens=40)
    for draft_vocab in ("head", "full"):
        decoder = Decoder(tiny_target, head, draft_vocab=draft_vocab)
        assert decoder.generate(prompt, max_new_tokens=40).token_ids == plain.token_ids


def test_the_context_end_is_reached_and_named(tiny_target):
    head = random_head(tiny_target)
    tiny_target.eos_ids = frozenset()
    for left in (1, 2, 23):
        prompt = [3 + (7 * i) % 97 for i in range(tiny_target.max_length - left)]
        plain = Decoder(tiny_target).generate(prompt, max_new_tokens=500)
        assert (plain.finish_reason, len(plain.token_ids)) == ("context", left)
        for tree in TREES:
            decoder = Decoder(tiny_target, head, tree=TreeSpec.parse(tree))
            found = decoder.generate(prompt, max_new_tokens=500)
            assert (found.token_ids, found.finish_reason) == (plain.token_ids, "context")


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 7])
def test_token_limits_are_kept_exactly(tiny_target, max_new_tokens):
    tiny_target.eos_ids = frozenset()
    plain = Decoder(tiny_target).generate([5, 6], max_new_tokens=max_new_tokens)
    decoder = Decoder(tiny_target, random_head(tiny_target), tree=TreeSpec(6, 10, 60))
    found = decoder.generate([5, 6], max_new_tokens=max_new_tokens)
    assert found.token_ids == plain.token_ids
    assert len(found.token_ids) == max_new_tokens
    assert found.finish_reason == "length"


def test_eos_inside_an_accepted_path_ends_the_answer(tiny_target):
    tiny_target.eos_ids = frozenset()
    head = random_head(tiny_target)
    decoder = Decoder(tiny_target, head, tree=TreeSpec(6, 10, 60))
    free = decoder.generate([5, 6, 7, 8, 9], max_new_tokens=60)
    inside = [r for r in free.rounds if r.accepted >= 1]
    assert inside, "the head must have something accepted for this test to mean anything"
    tiny_target.eos_ids = frozenset({inside[0].token_ids[0]})
    plain = Decoder(tiny_target).generate([5, 6, 7, 8, 9], max_new_tokens=60)
    found = decoder.generate([5, 6, 7, 8, 9], max_new_tokens=60)
    assert found.token_ids == plain.token_ids
    assert found.finish_reason == plain.finish_reason == "eos"
    assert found.token_ids[-1] in tiny_target.eos_ids
    assert found.rounds[-1].cut


def test_rounds_add_up(tiny_target):
    decoder = Decoder(tiny_target, random_head(tiny_target))
    generation = decoder.generate([5, 6, 7], max_new_tokens=30)
    assert [t for r in generation.rounds for t in r.token_ids] == generation.token_ids
    assert [r.is_prefill for r in generation.rounds] == [True] + [False] * (
        len(generation.rounds) - 1
    )
    for r in generation.rounds[1:]:
        assert r.cut or len(r.token_ids) == r.accepted + 1
        assert r.accepted <= r.tree_depth < r.tree_nodes or r.tree_nodes == 1
    split = generation.time
    assert min(split.prefill, split.draft, split.verify, split.other) > 0
    assert Decoder(tiny_target).generate([5, 6], max_new_tokens=9).tau == 1.0


def test_caches_are_allocated_once(tiny_target, monkeypatch):
    seen: dict[str, set[int]] = {"target": set(), "draft": set(), "mask": set()}
    original = Session.round

    def watched(self: Session):
        result = original(self)
        seen["target"].add(self._cache.layers[0].keys.data_ptr())
        seen["draft"].add(self._drafter.cache.layers[0].keys.data_ptr())
        seen["mask"].add(self._mask.data_ptr())
        return result

    monkeypatch.setattr(Session, "round", watched)
    Decoder(tiny_target, random_head(tiny_target)).generate([5, 6, 7], max_new_tokens=40)
    assert {name: len(pointers) for name, pointers in seen.items()} == dict.fromkeys(seen, 1)


def test_drafted_tree_equals_a_computation_without_cache(tiny_target):
    """Every node's features and candidates, recomputed from its whole path at once."""
    head = random_head(tiny_target)
    tokens = [5, 6, 7, 8, 9, 10]
    feature_TD = tiny_target.features(torch.tensor([tokens[:-1]]))[0]
    spec = TreeSpec(4, 3, 14)
    seen: list[torch.Tensor] = []

    class Watched(DraftVocabulary):
        def logits(self, feature: torch.Tensor) -> torch.Tensor:
            seen.append(feature)
            return super().logits(feature)

    drafter = Drafter(tiny_target, head, Watched(tiny_target), 32, spec)
    # In two pieces, as decoding does after each round.
    drafter.extend(torch.tensor(tokens[1:4]), feature_TD[:3])
    drafter.extend(torch.tensor(tokens[4:]), feature_TD[3:])
    tree = drafter.propose(tokens[-1], spec)
    assert drafter.cache.length == len(tokens) - 1

    def drafted_after(path: list[int]) -> torch.Tensor:
        features = [feature_TD]
        for count in range(len(path) + 1):
            ids = tokens[1:] + path[:count]
            drafted = head(
                tiny_target.embed(torch.tensor([ids])),
                torch.cat(features)[None],
                torch.arange(len(ids))[None],
            )
            features.append(drafted[0, -1:])
        return features[-1]

    pool: dict[tuple[int, ...], float] = {}
    frontier: dict[tuple[int, ...], float] = {(): 0.0}
    for depth in range(spec.depth):
        feature_FD = torch.cat([drafted_after(list(path)) for path in frontier])
        torch.testing.assert_close(seen[depth], feature_FD)
        log_prob_FV = torch.log_softmax(tiny_target.logits(feature_FD), -1)
        level = {}
        for (path, score), log_prob_V in zip(frontier.items(), log_prob_FV, strict=True):
            values, ids = log_prob_V.topk(spec.width)
            for value, token in zip(values.tolist(), ids.tolist(), strict=True):
                level[(*path, token)] = score + value
        pool |= level
        frontier = dict(sorted(level.items(), key=lambda node: -node[1])[: spec.width])
    best = sorted(pool, key=lambda path: -pool[path])[: spec.budget - 1]
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.token_N[1:], tree.parent_N[1:], strict=True):
        paths.append((*paths[parent], token))
    assert set(paths[1:]) == set(best)


def test_bad_requests_are_refused(tiny_target, tiny_target_factory):
    decoder = Decoder(tiny_target)
    with pytest.raises(ValueError, match="prompt is empty"):
        decoder.generate([])
    with pytest.raises(ValueError, match="prompt is empty"):
        decoder.generate("")
    with pytest.raises(ValueError, match="shorten the prompt"):
        decoder.generate([5] * tiny_target.max_length)
    with pytest.raises(ValueError, match="outside the target's vocabulary"):
        decoder.generate([5, 10**6])
    with pytest.raises(ValueError, match="max_new_tokens"):
        decoder.generate([5], max_new_tokens=0)
    with pytest.raises(ValueError, match="prompt is empty"):
        decoder.stream([])  # at once, not at the first round
    with pytest.raises(ValueError, match="hidden size is 32"):
        Decoder(tiny_target_factory(hidden_size=64), random_head(tiny_target))
    with pytest.raises(ValueError, match="draft_vocab"):
        Decoder(tiny_target, draft_vocab="some")


def test_a_head_of_other_weights_is_warned_about(tiny_target):
    head = random_head(tiny_target)
    head.metadata["target_fingerprint"] = "0123"
    with pytest.warns(UserWarning, match="trained for other weights"):
        Decoder(tiny_target, head)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"repetition_penalty": 0},
        {"seed": -1},
    ],
)
def test_bad_sampling_is_refused(values):
    with pytest.raises(ValueError, match="must be"):
        Sampling(**values)
