"""A process in a container: its streams, its end, what became of it."""
