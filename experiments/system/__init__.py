"""What concerns the machine and its user: errors, paths, files, the console."""
