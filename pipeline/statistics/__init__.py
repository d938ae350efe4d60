"""Counts over documents and patches that add up exactly."""
