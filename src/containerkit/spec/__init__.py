"""Descriptions: values that are checked when they are made. No system call is made here."""
