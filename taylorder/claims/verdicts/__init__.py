"""One claim a file: from evidence to a verdict with the figures it rests on."""
