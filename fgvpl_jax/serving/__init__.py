"""Web page and HTTP endpoint of a trained run."""
