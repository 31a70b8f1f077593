"""One small file per benchmark over `fgvpl_jax/runs/default_config.py`."""
