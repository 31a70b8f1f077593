"""One small file per benchmark over `common.py`."""
