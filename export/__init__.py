"""From a checkpoint to files that run elsewhere, each compared with what it was made from."""
