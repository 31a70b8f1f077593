"""One small file per benchmark; each changes fields of `fgvpl_jax/runs/default_config.py`."""
