"""Layers: compression, the safe extractor, and the directories that hold each layer unpacked."""
