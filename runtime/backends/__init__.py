"""Runs exported models: one file an inference library, behind one interface."""
