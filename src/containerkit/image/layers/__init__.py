"""Layers: compression, the safe extractor, and the folders that hold each layer unpacked."""
