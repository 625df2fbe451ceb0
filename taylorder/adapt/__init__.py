"""From measurements to a config: what a choice costs, which one is made, and the file that holds it."""
