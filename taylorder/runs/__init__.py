"""The run directory: what a run wrote, written and read back; renders nothing."""
