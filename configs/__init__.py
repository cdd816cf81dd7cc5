"""One small file per experiment; each has `get_config(variant)`."""
