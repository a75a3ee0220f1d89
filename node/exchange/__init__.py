"""The two ends of a pull, and beginning a feed anew."""
