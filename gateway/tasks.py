"""Tasks that no caller owns, and work that callers share."""
