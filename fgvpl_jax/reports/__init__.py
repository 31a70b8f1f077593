"""Reads many runs and writes one report of them: tables, figures, comparisons, a page."""
