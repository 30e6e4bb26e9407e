"""Logs of a run that people read: its steps, its evaluations, and what it came to."""
