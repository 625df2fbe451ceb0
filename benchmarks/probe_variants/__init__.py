"""Ways to fit a probe, and the texts that they are fitted to and judged on."""
