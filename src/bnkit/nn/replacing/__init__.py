"""Functions that change the batch norms of a model in place, and back."""
