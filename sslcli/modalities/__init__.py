"""Kinds of data, one file each: from what a user names to batches, networks and files."""
