"""The page and the HTTP endpoint of a trained run."""
