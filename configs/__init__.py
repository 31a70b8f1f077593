"""One small file per benchmark over `fgvpl_jax/apps/default_config.py`."""
