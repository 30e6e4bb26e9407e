"""Inference libraries behind one interface, a file each."""
