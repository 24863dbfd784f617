"""Benchmarks in containers: measures the resources of a command, with limits, on exclusive processors.

::

    from containerkit.measure import RunExecutor

    with RunExecutor(cores=1) as executor:
        done = executor.execute_run(["./solver", "problem"], cpu_limit_s=900, memory_limit="4G", rootfs=...)
        print(done.cpu_s, done.termination)

``python -m containerkit.measure -- COMMAND`` prints the measurements of one command.
"""

from containerkit.measure.executor import RunExecutor
from containerkit.measure.result import Measurement, PressureTimes, Termination
from containerkit.measure.topology import Allotment, Processor, Topology

__all__ = ["Allotment", "Measurement", "PressureTimes", "Processor", "RunExecutor", "Termination", "Topology"]
