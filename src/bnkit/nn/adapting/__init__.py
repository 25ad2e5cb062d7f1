"""Inference with other statistics than the running ones, and back: every bit as it was."""
