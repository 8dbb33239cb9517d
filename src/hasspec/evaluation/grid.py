"""The grid of an ablation: cells that differ in a few recipe keys, each trained with every seed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from hasspec.training.recipe import Recipe, load_recipe

_FolderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]


class Cell(BaseModel):
    """One variant.

    Attributes:
        set: recipe keys that differ, ``{"alignment.steps": 1}``.
        data: token stores instead of the grid's.
        init: head to start from instead of the grid's.
        against: the cell that it is compared with instead of the grid's baseline.
    """

    model_config = ConfigDict(extra="forbid")

    set: dict[str, Any] = {}
    data: list[Path] | None = None
    init: Path | None = None
    against: str | None = None


class Grid(BaseModel):
    """An ablation. The recipe's path is relative to the grid's file, others to a root.

    Attributes:
        recipe: what all cells share.
        data: token stores to train on.
        init: head that all cells start from; None for random weights.
        answers: token stores that the target wrote at temperature 0, to measure acceptance on.
        conversations: of each of ``answers``, at most so many.
        trees: the first decides.
        seeds: every cell is trained with each.
        baseline: the cell that others are compared with.
    """

    model_config = ConfigDict(extra="forbid")

    recipe: Path
    data: list[Path] = Field(min_length=1)
    init: Path | None = None
    answers: list[Path] = Field(min_length=1)
    conversations: int | None = Field(None, ge=1)
    trees: list[str] = Field(["default", "chain:6"], min_length=1)
    seeds: list[int] = Field([0], min_length=1)
    baseline: str
    cells: dict[_FolderName, Cell] = Field(min_length=1)

    @model_validator(mode="after")
    def _compared_cells_exist(self) -> Self:
        for name in (self.baseline, *(cell.against for cell in self.cells.values())):
            if name is not None and name not in self.cells:
                raise ValueError(f"no cell is called {name!r}; there are {', '.join(self.cells)}")
        return self

    @property
    def runs(self) -> Iterator[tuple[str, int]]:
        """Cells and seeds, seed by seed: an interrupted ablation has whole seeds of all cells."""
        for seed in self.seeds:
            for name in self.cells:
                yield name, seed

    def recipe_of(self, name: str, seed: int) -> Recipe:
        """The recipe of a run."""
        changes = {**self.cells[name].set, "seed": seed, "name": name}
        return load_recipe(
            self.recipe,
            [f"{key}={json.dumps(value)}" for key, value in changes.items()],
        )

    def data_of(self, name: str) -> list[Path]:
        """The token stores of a cell."""
        return self.cells[name].data or self.data

    def init_of(self, name: str) -> Path | None:
        """The head that a cell starts from."""
        return self.cells[name].init or self.init

    def rival_of(self, name: str) -> str:
        """The cell that a cell is compared with."""
        return self.cells[name].against or self.baseline


def load_grid(path: Path, root: Path | None = None) -> Grid:
    """Read a grid, and every recipe in it, before anything is trained.

    Args:
        root: what the paths of stores and heads are relative to; None for the grid's folder.

    Raises:
        ValueError: unreadable YAML, unknown keys, a recipe key that does not exist, or values out
            of range, each named.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"no grid at {path}; give a YAML file") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    try:
        grid = _resolved(Grid.model_validate(values), path.parent, root or path.parent)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
        )
        raise ValueError(f"the grid {path} is not valid: {problems}") from error
    for name, seed in grid.runs:
        try:
            grid.recipe_of(name, seed)
        except ValueError as error:
            raise ValueError(f"cell {name!r} of {path}: {error}") from error
    return grid


def _resolved(grid: Grid, folder: Path, root: Path) -> Grid:
    def under_root(found: Path | None) -> Path | None:
        return None if found is None else root / found

    def all_under_root(found: list[Path] | None) -> list[Path] | None:
        return found and [root / path for path in found]

    cells = {
        name: cell.model_copy(
            update={"data": all_under_root(cell.data), "init": under_root(cell.init)}
        )
        for name, cell in grid.cells.items()
    }
    return grid.model_copy(
        update={
            "recipe": folder / grid.recipe,
            "data": all_under_root(grid.data),
            "answers": all_under_root(grid.answers),
            "init": under_root(grid.init),
            "cells": cells,
        }
    )
