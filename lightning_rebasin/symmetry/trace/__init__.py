"""One forward pass written down: the tape of its operations."""
