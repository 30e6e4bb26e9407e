"""Checks that are run by hand, on machines that the tests do not have."""
