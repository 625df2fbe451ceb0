"""Measurements and configs as people and programs read them; computes nothing that is not counting or formatting."""
