"""One run from config to results: settings, folder, data, training, measuring."""
