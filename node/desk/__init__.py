"""What was received, and the work of people with it."""
