"""What a process may do: capabilities, system calls, files, paths, labels, keys.

Each module describes one mechanism as frozen values and turns it into operations of a plan; none needs another, except
that the default seccomp filter knows the names of the capabilities.
"""
