"""Pictures, charts and reports."""
