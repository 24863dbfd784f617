"""The system call numbers of each architecture, as the kernel's own tables have them (up to Linux 6.19)."""
