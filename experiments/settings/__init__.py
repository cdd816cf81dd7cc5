"""The settings of an experiment: what they are, what they may be, what follows from them."""
