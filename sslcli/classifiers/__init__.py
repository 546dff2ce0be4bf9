"""What stands between the vector of a text and its label, one file per kind, named by `task.head`."""
