"""Runs untrusted Python code piece by piece in a container, for agents and notebooks. Variables are kept.

::

    from containerkit.interpreter import Interpreter

    with Interpreter() as i:
        i.run_code("x = 40")
        assert i.run_code("x + 2").text == "42"
"""

from containerkit.interpreter.execution import Execution, ExecutionError, Logs, Result
from containerkit.interpreter.interpreter import Interpreter, Snapshot

__all__ = ["Execution", "ExecutionError", "Interpreter", "Logs", "Result", "Snapshot"]
