"""A process in a container: its streams, how it ends, its result."""
