"""Speed, measured as ratios against named references in one run, since absolute figures differ between machines and hours."""
