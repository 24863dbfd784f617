"""Checkpoints: CRIU saves the processes of a container to a directory, and restores them from it.

This is what :meth:`containerkit.Container.checkpoint` and :meth:`containerkit.Container.restore` do.
"""

from containerkit.checkpoint.calling import find_program
from containerkit.checkpoint.dump import checkpoint
from containerkit.checkpoint.guard import Guard
from containerkit.checkpoint.refusals import Subject
from containerkit.checkpoint.restored import Restored

__all__ = ["Guard", "Restored", "Subject", "checkpoint", "find_program"]
