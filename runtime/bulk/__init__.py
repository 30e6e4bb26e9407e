"""Detects in a million images: `python -m runtime.bulk`, on Ray Data, with its results in Parquet shards."""
