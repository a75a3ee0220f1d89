"""What two nodes must agree on. Pure: no clock, disk, socket, database or randomness of its own."""
