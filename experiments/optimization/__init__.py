"""What an update does with a gradient: schedules, the optimizer, which parameters it treats how."""
