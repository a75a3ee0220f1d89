"""One home on the disk: lock, keys, people, logs, the node's own card; and what use cases work with."""
