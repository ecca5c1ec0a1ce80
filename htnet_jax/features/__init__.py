"""What a network can be fed, and how it is varied in training."""
