"""A container: its life, the commands in it, its files; :func:`run` and :class:`Template`."""
