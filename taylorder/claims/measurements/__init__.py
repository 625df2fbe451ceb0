"""What is measured for the claims alone, each kept in records under its own settings."""
