"""Where models, checkpoints and data come from: files and callables that a user names."""
