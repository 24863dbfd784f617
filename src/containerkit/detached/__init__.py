"""Containers that go on after the process that started them: each is held by a small keeper of its own."""
