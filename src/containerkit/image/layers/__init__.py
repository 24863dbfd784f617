"""Layers of images: the directories that contain each layer unpacked, and what overlayfs gets of them."""
