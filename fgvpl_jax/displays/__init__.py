"""What people watch or look at: progress, live tables, training logs, overlays, contact sheets."""
