"""Long accepted paths through bushy trees, drafted by an oracle that knows the answer.

Random heads are rarely right; here every round accepts a path of a chosen length whose nodes lie
anywhere in the tree, so that what is kept of the caches must be right for the answer to go on.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from hasspec.decoding import Decoder, DraftTree, Generation, Sampling, TreeSpec
from hasspec.decoding import engine as engine_module
from hasspec.decoding.drafting import Drafter
from hasspec.draft import DraftConfig, DraftHead
from hasspec.target import Target


def bushy_tree(
    root: int, continuation: list[int], spec: TreeSpec, vocab: int, rng: random.Random
) -> tuple[DraftTree, int]:
    """A tree of ``spec`` that holds some of the continuation, and how many tokens of it."""
    known = rng.randint(0, min(len(continuation), spec.depth, spec.budget - 1))
    paths = {tuple(continuation[:length]) for length in range(known + 1)}
    while len(paths) < spec.budget:
        below = rng.choice([path for path in sorted(paths) if len(path) < spec.depth])
        paths.add((*below, rng.randrange(vocab)))
    order = sorted(paths, key=lambda path: rng.random())
    ordered: list[tuple[int, ...]] = [()]
    while len(ordered) < len(paths):
        ordered += [p for p in order if p not in ordered and p[:-1] in ordered][:1]
    number = {path: node for node, path in enumerate(ordered)}
    tokens = [root, *(path[-1] for path in ordered[1:])]
    parents = [-1, *(number[path[:-1]] for path in ordered[1:])]
    return DraftTree(tokens, parents, [len(path) for path in ordered]), known


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Generation]:
    """``oracle(target, prompt, answer, spec, sampling)`` decodes with trees that know the answer.

    Before each round it checks the head's state against a run over the whole sequence at once.
    """

    def decode(
        target: Target,
        prompt: list[int],
        answer: list[int],
        spec: TreeSpec,
        sampling: Sampling = Sampling(),
    ) -> Generation:
        sequence, rng, known_in_round = prompt + answer, random.Random(0), []

        class Oracle(Drafter):
            def propose(self, root_token: int, spec: TreeSpec) -> DraftTree:
                n_true = self.cache.length
                assert root_token == sequence[n_true]
                ids_1T = torch.tensor([sequence[: n_true + 1]])
                whole_1TD = self._head(
                    target.embed(ids_1T[:, 1:]),
                    target.features(ids_1T[:, :-1]),
                    torch.arange(n_true)[None],
                )
                torch.testing.assert_close(
                    self._root_feature_11D, whole_1TD[:, -1:], rtol=1e-3, atol=1e-3
                )
                tree, known = bushy_tree(
                    root_token, sequence[n_true + 1 :], spec, target.vocab_size, rng
                )
                known_in_round.append(known)
                return tree

        monkeypatch.setattr(engine_module, "Drafter", Oracle)
        torch.manual_seed(0)
        head = DraftHead(DraftConfig.from_target(target.config)).to(target.dtype).eval()
        decoder = Decoder(target, head, tree=spec)
        generation = decoder.generate(prompt, max_new_tokens=len(answer), sampling=sampling)
        drafted = [r for r in generation.rounds if r.tree_nodes > 1]
        assert len(drafted) == len(known_in_round)
        assert all(r.accepted >= k for r, k in zip(drafted, known_in_round, strict=True))
        return generation

    return decode


@pytest.mark.parametrize("family", ["llama", "llama3", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=1.0, seed=7),
        Sampling(temperature=0.8, top_k=30, top_p=0.9, repetition_penalty=1.2, seed=8),
    ],
    ids=["greedy", "sampled", "processed"],
)
def test_bushy_trees_that_know_the_answer(tiny_target_factory, oracle, family, sampling):
    target = tiny_target_factory(family)
    target.eos_ids = frozenset()
    prompt = [5, 6, 7, 8, 9]
    plain = Decoder(target).generate(prompt, max_new_tokens=40, sampling=sampling)
    for spec in (TreeSpec(5, 4, 16), TreeSpec(1, 6, 6), TreeSpec(6, 1, 7)):
        found = oracle(target, prompt, plain.token_ids, spec, sampling)
        assert found.token_ids == plain.token_ids
    assert found.tau > 2


@pytest.mark.parametrize(
    "question",
    ["Name three colours and add 17 and 25.", "Write a Python function that reverses a list."],
)
def test_the_embedded_model_says_what_transformers_says(embedded_target, oracle, question):
    prompt = embedded_target.encode_chat([{"role": "user", "content": question}])
    ids = embedded_target.model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
    answer = ids[0, len(prompt) :].tolist()
    found = oracle(embedded_target, prompt, answer, TreeSpec(5, 6, 12))
    assert found.token_ids == answer
