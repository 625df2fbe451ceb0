"""Claims made about truncated attention, each with a verdict and its evidence; see docs/claims.md."""
