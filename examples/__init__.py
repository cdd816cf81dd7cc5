"""A new bijector, a new data layer and a new data set: each one file, which is a config too."""
