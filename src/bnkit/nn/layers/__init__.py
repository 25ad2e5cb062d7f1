"""The layers whose channels are dimension 1."""
