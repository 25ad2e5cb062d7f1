"""What enters the running statistics of a layer, and when."""
