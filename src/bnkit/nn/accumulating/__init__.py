"""One optimizer step from several micro-batches."""
