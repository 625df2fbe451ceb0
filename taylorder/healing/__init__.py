"""Train a model for its config, and show what that buys."""
