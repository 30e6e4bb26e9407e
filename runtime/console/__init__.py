"""Signals, terminal output and start of the command lines; needs the standard library alone."""
