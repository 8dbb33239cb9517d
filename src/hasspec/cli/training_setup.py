"""What a training run is made of: stores read and checked, features, decoded validation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from hasspec.draft import DraftHead
    from hasspec.target import Target
    from hasspec.training.batches import Example
    from hasspec.training.features import FeatureSource
    from hasspec.training.processes import Processes
    from hasspec.training.progress import Served
    from hasspec.training.recipe import Recipe


@dataclass(frozen=True)
class TrainingData:
    """What is trained on, what is set aside, and what is recorded about both."""

    examples: list[Example]
    held_out: list[Example]
    provenance: dict[str, Any]


def training_data(
    target: Target,
    name: str,
    stores: Sequence[Path],
    recipe: Recipe,
    start: DraftHead | None,
) -> TrainingData:
    """Read token stores for a run.

    Args:
        name: what the user calls the target.
        start: the head that training starts from, to be recorded.

    Raises:
        ValueError: a store is damaged or another target's, or nothing is left to train on.
    """
    from hasspec.training.batches import example_of
    from hasspec.training.validation import set_aside

    provenance: dict[str, Any] = {"target": name, "target_fingerprint": target.fingerprint()}
    provenance["data"] = []
    examples: list[Example] = []
    longest = min(recipe.max_length, target.max_length)
    for path in stores:
        conversations, about = _read_store(path, target)
        provenance["data"].append(about)
        examples += [example_of(conversation, longest) for conversation in conversations]
    if start is not None:
        trained_for = start.metadata.get("target_fingerprint")
        if trained_for not in (None, target.fingerprint()):
            raise ValueError(
                f"the head to start from was trained for another target (weights {trained_for}, "
                f"this target's are {target.fingerprint()}); give a head of this target, or leave "
                "--init out"
            )
        provenance["init"] = _described(start)
    return TrainingData(
        *set_aside(examples, recipe.validation.conversations, recipe.seed), provenance
    )


def _described(head: DraftHead) -> dict:
    """What a head that training starts from was, and a hash of its weights."""
    digest = hashlib.sha256()
    for name, weight in sorted(head.state_dict().items()):
        digest.update(name.encode() + weight.float().cpu().numpy().tobytes())
    kept = ("name", "recipe", "data", "training")
    return {
        "weights": digest.hexdigest()[:16],
        **{key: head.metadata[key] for key in kept if key in head.metadata},
    }


def _read_store(path: Path, target: Target) -> tuple[list, dict]:
    from hasspec.data.store import TokenStore, tokenizer_fingerprint

    store = TokenStore.open(path)
    about = store.metadata
    wrote = about.target["fingerprint"]
    if wrote != target.fingerprint():
        raise ValueError(
            f"the data in {path} was written by another target (weights {wrote}, this target's are "
            f"{target.fingerprint()}); a head learns its own target's text: synthesise it again"
        )
    ours = tokenizer_fingerprint(target.tokenizer) if target.tokenizer else ""
    if ours and about.tokenizer_fingerprint not in ("", ours):
        raise ValueError(
            f"the data in {path} was made with another tokenizer or chat template (fingerprint "
            f"{about.tokenizer_fingerprint}, this target's is {ours}): its token ids would be read "
            "as other text. Use the target folder that it was made with, or synthesise it again"
        )
    return list(store), {
        "store": path.name,
        "fingerprint": store.fingerprint(),
        "conversations": len(store),
        "answer_tokens": store.n_answer_tokens,
        "settings": about.settings,
        "seed": about.seed,
    }


def feature_source(
    cache: Path | None,
    examples: list[Example],
    target: Target,
    console: Console,
    processes: Processes,
) -> FeatureSource:
    from rich.progress import Progress, TimeRemainingColumn

    from hasspec.training.feature_cache import CachedFeatures, FeatureCache
    from hasspec.training.features import ComputedFeatures

    if cache is None:
        return ComputedFeatures(target)

    def fill() -> None:
        columns = [*Progress.get_default_columns()[:-1], TimeRemainingColumn()]
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("target features", total=None)
            FeatureCache(cache, target).add(
                examples,
                on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            )

    processes.from_main(fill)
    return CachedFeatures(FeatureCache(cache, target), examples, target)


def serving(
    target: Target, recipe: Recipe, held_out: list[Example]
) -> Callable[[DraftHead], Served] | None:
    """Decodes the prompts that the recipe's ``validation`` asks for."""
    from hasspec.decoding import TreeSpec
    from hasspec.evaluation.served import ServedAcceptance

    validation = recipe.validation
    if not validation.prompts:
        return None
    answered = [example for example in held_out if len(example.root_R)]
    # The first root is the last token of the first prompt.
    prompts = [e.token_T[: e.root_R[0] + 1].tolist() for e in answered[: validation.prompts]]
    trees = [
        TreeSpec.parse(tree, target.device)
        for tree in (validation.tree, f"chain:{validation.depth}")
    ]
    return ServedAcceptance(
        target,
        prompts,
        list(dict.fromkeys(trees)),
        validation.temperatures,
        new_tokens=validation.new_tokens,
        seed=recipe.seed,
    ).measure
