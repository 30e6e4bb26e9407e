"""From a checkpoint to files that run elsewhere, each compared with what it was made from."""

import runtime  # noqa: F401 - ends a command cleanly that is interrupted while it imports the rest
