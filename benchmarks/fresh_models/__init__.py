"""Small models that are trained with truncated attention from their first step on."""
