"""Images: references, registries, a store, layers, builds and templates."""
