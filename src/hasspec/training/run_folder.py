"""The files of a training run: what it was, where it stands, how it went."""

from __future__ import annotations

import json
import pickle
import platform
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from hasspec.files import replacing, write_atomically
from hasspec.training.recipe import Recipe


class RunFolder:
    """``OUT/run``: recipe.yaml, run.json (provenance), state.pt (to resume), best.pt (weights of
    the best head so far, where decoding is measured), metrics.jsonl.

    The head itself lies one level up, in the layout that engines read.
    """

    def __init__(self, out: Path):
        self.out = out
        self.folder = out / "run"
        self.folder.mkdir(parents=True, exist_ok=True)

    def start(self, recipe: Recipe, provenance: dict[str, Any]) -> None:
        """Record a new run, or make sure that the one that is here is the same.

        Raises:
            ValueError: the folder holds a run with another recipe, target or data.
        """
        described = {"recipe": recipe.model_dump(mode="json"), **provenance}
        about = self.folder / "run.json"
        if about.is_file():
            recorded = json.loads(about.read_text(encoding="utf-8"))["described"]
            different = sorted(
                key for key in {*described, *recorded} if described.get(key) != recorded.get(key)
            )
            if different:
                raise ValueError(
                    f"{self.out} holds a run with another {', '.join(different)}; "
                    "choose another --out, or repeat the command of that run to resume it"
                )
            return
        versions = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        command = [Path(sys.argv[0]).name, *sys.argv[1:]]
        write_atomically(
            about,
            json.dumps(
                {"described": described, "command": command, "versions": versions}, indent=2
            ),
        )
        write_atomically(
            self.folder / "recipe.yaml",
            yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False),
        )

    def save_state(self, state: dict[str, Any]) -> None:
        """Write the resumable state; a kill leaves the previous one whole."""
        self._save(self.folder / "state.pt", state)

    def save_best(self, weights: dict[str, Any]) -> None:
        """Keep the weights of the best head so far."""
        self._save(self.folder / "best.pt", weights)

    def save_not_finite(self, about: dict[str, Any]) -> Path:
        """Keep what a loss that is not finite came from."""
        file = self.folder / "not-finite.pt"
        self._save(file, about)
        return file

    def load_best(self) -> dict[str, Any]:
        """The weights of the best head."""
        return self._load(self.folder / "best.pt")

    def state(self) -> dict[str, Any] | None:
        """The state that an interrupted run saved; None for a fresh one."""
        file = self.folder / "state.pt"
        return self._load(file) if file.is_file() else None

    def _save(self, file: Path, content: dict[str, Any]) -> None:
        # Given a path, torch.save hides what the operating system says of a full disk.
        with replacing(file) as partial, partial.open("wb") as opened:
            torch.save(content, opened)

    def _load(self, file: Path) -> dict[str, Any]:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{file} cannot be read ({error}); delete {self.folder} to train from the start"
            ) from error

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop logged lines of steps that a resumed run will do again."""
        file = self.folder / "metrics.jsonl"
        if not file.is_file():
            return
        lines = file.read_text(encoding="utf-8").splitlines()
        # A killed process may leave half a line at the end.
        records = [json.loads(line) for line in lines if line.endswith("}")]
        kept = [json.dumps(record) for record in records if record["step"] <= step]
        write_atomically(file, "".join(line + "\n" for line in kept))
