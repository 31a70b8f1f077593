"""Displays for people: progress, live tables, training logs, overlays and contact sheets."""
