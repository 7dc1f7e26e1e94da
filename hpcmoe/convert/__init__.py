"""Models of others -> our model file."""
