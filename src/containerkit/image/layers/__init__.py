"""Layers of images: unpack each to a directory, and select the directories that overlayfs mounts."""
