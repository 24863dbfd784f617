"""A process in a container: its streams, its end, its result."""
