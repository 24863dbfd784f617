"""Containers that outlive the process that started them. Each one is held by a separate small keeper."""
