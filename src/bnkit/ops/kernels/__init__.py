"""The kernels behind the operators; one file an idea, none imported before it is needed."""
