"""Batches that are parts of larger ones: in other processes, or with weights."""
