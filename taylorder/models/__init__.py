"""Find, load and describe a model, record its attention, and refuse what cannot be measured."""
