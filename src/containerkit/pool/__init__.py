"""Objects that are made in advance, such as empty network namespaces."""
