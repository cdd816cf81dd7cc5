"""Flags, and what each mode of the command does."""
