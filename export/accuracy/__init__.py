"""Measures accuracy after each conversion step and holds it against a budget."""
