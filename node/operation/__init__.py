"""Running a node: the server, its jobs, health and metrics, alarms to people, the doctor, backup and restore."""
