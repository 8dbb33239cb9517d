"""Training: context alignment, objectives, and the loop around them."""

from hasspec.training.recipe import Recipe, load_recipe
from hasspec.training.trainer import Trainer

__all__ = ["Recipe", "Trainer", "load_recipe"]
