"""State, step, evaluation."""
