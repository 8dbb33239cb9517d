"""Training recipes: every knob in one checked object, read from YAML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hasspec.training.terms import TERMS


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Alignment(_Section):
    """Harmonized context alignment (paper section 3.2)."""

    steps: int = Field(3, ge=1, le=16, description="n; 1 is EAGLE's training")
    detach: bool = Field(True, description="stop the gradient between steps")
    tokens: Literal["text", "own"] = Field(
        "text", description="later steps go on with the text's tokens, or with the head's guesses"
    )
    reference_mask: bool = Field(
        False,
        description="hide keys as the paper's code does, which decoding does not; to compare",
    )
    recompute: bool = Field(
        True,
        description="hold one step's activations at a time; false: faster, memory grows with n",
    )
    beta: float = Field(1.0, gt=0, description="weight of step j is beta**(j-1)")
    delay: float = Field(
        0.0, ge=0, lt=1, description="share of the optimiser steps with n = 1 before n steps begin"
    )

    @model_validator(mode="after")
    def _gradients_through_steps_are_held(self) -> Self:
        if self.recompute and not self.detach:
            raise ValueError(
                "detach: false lets gradients through all steps, which needs the activations of "
                "all of them; set recompute: false as well"
            )
        return self


class Objective(_Section):
    """Loss weights (paper section 3.1)."""

    feature: float = Field(1.0, ge=0)
    ce: float = Field(0.1, ge=0)
    top_k: float = Field(1.0, ge=0, description="w")
    k: int = Field(10, ge=1, description="K")
    terms: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="weights of further terms by name"
    )
    mean: Literal["token", "sequence"] = Field(
        "token", description="a step's loss is the mean over its tokens, or over conversations"
    )
    until_miss: bool = Field(
        False, description="later steps count only where the chain has guessed right so far"
    )
    p: float = Field(0.9, gt=0, le=1, description="P of the term top_p")
    kl_share: float = Field(0.5, ge=0, le=1, description="share of KL in the term lk")

    @field_validator("terms")
    @classmethod
    def _terms_exist(cls, terms: dict[str, float]) -> dict[str, float]:
        for name in terms:
            if name not in TERMS:
                raise ValueError(f"no term is called {name!r}; there are {', '.join(TERMS)}")
        return terms


class Optimisation(_Section):
    optimiser: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(3e-5, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    warmup: float = Field(0.01, ge=0, le=1, description="share of the steps")
    schedule: Literal["linear", "cosine"] = "linear"
    clip: float = Field(0.5, gt=0, description="largest gradient norm")
    steps: int = Field(1000, ge=1, description="optimiser steps")
    batch: int = Field(16, ge=1, description="conversations a step")
    accumulate: int = Field(
        1, ge=1, description="forwards that a step's conversations are split into: less memory"
    )
    packed: bool = Field(False, description="several conversations in a row, for less padding")
    skip_limit: int = Field(
        5, ge=0, description="steps in a row that may be skipped, loss or gradient not finite"
    )
    feature_noise: float = Field(0.0, ge=0, description="half-width of uniform noise on features")
    feature_noise_length: int | None = Field(
        None, ge=1, description="conversations of this length get that noise, longer ones less"
    )


class Vocabulary(_Section):
    """Which tokens are drafted, and over which the losses are taken.

    ``drafted`` frequent tokens of the data are drafted from at decoding time; 0 means all. The
    losses see these and, at each step, ``sampled`` random others that stand for the rest
    (sampled softmax); 0 leaves the rest out.
    """

    drafted: int = Field(0, ge=0)
    sampled: int = Field(0, ge=0)


class Validation(_Section):
    """Conversations that are set aside and never trained on, to see how far guesses hold there.

    Cheap: chains from every position of the answers. True: the first ``prompts`` of them decoded
    with the engine, on the tree that will be served and on a chain; the best head by that is kept.
    """

    conversations: int = Field(0, ge=0, description="how many; 0 measures nothing")
    every: int = Field(200, ge=1, description="optimiser steps between two measurements")
    depth: int = Field(6, ge=1, le=16, description="length of the chains")
    prompts: int = Field(0, ge=0, description="of these, how many are decoded; 0 decodes none")
    tree: str = Field("default", description="the tree that will be served")
    temperatures: tuple[Annotated[float, Field(ge=0)], ...] = Field((0.0, 1.0), min_length=1)
    new_tokens: int = Field(64, ge=2, description="most tokens decoded of each prompt")
    patience: int = Field(
        0, ge=0, description="measurements without a better tau that end training; 0: never"
    )

    @model_validator(mode="after")
    def _decoded_prompts_are_set_aside(self) -> Self:
        if self.prompts > self.conversations:
            raise ValueError(
                f"prompts = {self.prompts} of only {self.conversations} conversations that are set "
                "aside; raise conversations"
            )
        if self.patience and not self.prompts:
            raise ValueError("patience needs prompts to decode; set prompts, too")
        return self


class Recipe(_Section):
    """A training run, complete but for target and data."""

    name: str = "head"
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    max_length: int = Field(2048, ge=8)
    checkpoint_minutes: float = Field(5.0, gt=0)
    log_every: int = Field(10, ge=1)
    alignment: Alignment = Alignment()
    objective: Objective = Objective()
    optimisation: Optimisation = Optimisation()
    vocabulary: Vocabulary = Vocabulary()
    validation: Validation = Validation()

    @model_validator(mode="after")
    def _misses_are_known_to_all_parts(self) -> Self:
        if self.objective.until_miss and self.optimisation.accumulate > 1:
            raise ValueError(
                "objective.until_miss divides by how many chains are still right in the whole "
                "batch, which is not known before its last part; set optimisation.accumulate = 1"
            )
        return self


def load_recipe(path: str | Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe (None for the defaults) and apply ``section.key=value`` overrides.

    Raises:
        ValueError: unreadable YAML, unknown keys or values out of range, each named.
    """
    values: Any = {}
    if path is not None:
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except FileNotFoundError as error:
            raise ValueError(f"no recipe at {path}; give a YAML file") from error
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{path} must hold a mapping of recipe keys, not a {type(values).__name__}"
        )
    for override in overrides:
        _apply(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
        )
        raise ValueError(f"the recipe {path or '(defaults)'} is not valid: {problems}") from error


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ValueError(f"override {override!r} must have the form section.key=value")
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"override {override!r}: {section!r} is not a section of the recipe")
    values[last] = yaml.safe_load(text)
