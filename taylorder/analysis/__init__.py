"""From a model to measurements: capture, spectral alpha, truncation error, statistics, text."""
