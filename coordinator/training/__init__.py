"""Runs: recipes, the engine that decides, the steward that writes, evaluation."""
