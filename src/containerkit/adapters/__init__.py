"""Adapters to interfaces of other projects, each in a separate module: joblib, smolagents, llm-sandbox, Jupyter."""
