"""A container: its lifecycle, the commands in it, its files; :func:`run` and :class:`Template`."""
