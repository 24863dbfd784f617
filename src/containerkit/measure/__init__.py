"""Benchmarks in containers: the resources that a command used, with limits, on processors of its own.

::

    from containerkit.measure import RunExecutor

    with RunExecutor(cores=1) as executor:
        done = executor.execute_run(["./solver", "problem"], cpu_limit_s=900, memory_limit="4G", rootfs=...)
        print(done.cpu_s, done.termination)

``python -m containerkit.measure -- COMMAND`` prints what one command took.
"""

from containerkit.measure.executor import RunExecutor
from containerkit.measure.result import Measurement, PressureTimes, Termination
from containerkit.measure.topology import Allotment, Processor, Topology

__all__ = ["Allotment", "Measurement", "PressureTimes", "Processor", "RunExecutor", "Termination", "Topology"]
