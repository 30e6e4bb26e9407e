"""Measures speed as ratios against named references in the same run, since absolute times differ between machines and hours."""
