"""The paths of the kernel that a container has no business with.

Source: OCI runtime-spec, config-linux.md, "Masked Paths" and "Readonly Paths"; the lists are those that Docker, podman
and containerd agree on.
"""

from __future__ import annotations

__all__ = ["MASKED", "READONLY"]

MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
"""What is hidden: an empty folder, or a file that reads as empty."""

READONLY = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)
"""What can't be written to."""
