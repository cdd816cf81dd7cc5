"""Speed, in ratios that one run measures."""
