"""Triton is loaded before TensorFlow: both bring LLVM, and in the other order Triton crashes."""

import torch._dynamo  # noqa: F401  loads Triton where it is installed
