"""Ways to choose that do not ship: rules that measure nothing, and a config without one lever."""
