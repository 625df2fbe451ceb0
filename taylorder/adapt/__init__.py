"""From a config to a running model: the file, its cost, the attention, the cache, and generation."""
