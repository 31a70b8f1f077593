"""A single run from config to results: settings, workdir, data, training, evaluation."""
