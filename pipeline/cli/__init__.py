"""Pieces that all commands share: running a job, errors, results, progress in one process."""
