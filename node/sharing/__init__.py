"""What leaves and how it is taken back: cases, advisories, releases, relays, recalls, statements."""
