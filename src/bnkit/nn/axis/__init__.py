"""`BatchNorm`: channels on any axes, with the arguments of TensorFlow."""
