"""Peers and what is settled with them: cards, agreements, and the feeds in both directions."""
