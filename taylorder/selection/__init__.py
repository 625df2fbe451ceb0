"""Which KV head runs what: candidates, their measured errors, and the choice under a tolerance or a budget."""
