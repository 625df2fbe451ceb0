"""Atomic files, resumable records, strict JSON, tensors and the versions that made them."""
