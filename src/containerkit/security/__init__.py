"""The restrictions of a process: capabilities, system calls, files, paths, labels, keys.

Each module describes one mechanism as frozen values and converts it to operations of a plan. The modules do not depend
on each other, except that the default seccomp filter uses the names of the capabilities.
"""
