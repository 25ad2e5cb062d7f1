"""Folding (placeholder until the branch of the fold package is merged)."""
