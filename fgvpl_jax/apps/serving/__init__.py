"""`--mode=serve`: a page and an HTTP endpoint for a trained run."""
