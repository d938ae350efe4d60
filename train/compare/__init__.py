"""Experiments: models trained at equal cost, and a page that says what came of it."""
