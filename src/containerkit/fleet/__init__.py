"""Containers on many machines: an engine that exists distributes them, such as Ray, Dask or Kubernetes."""
