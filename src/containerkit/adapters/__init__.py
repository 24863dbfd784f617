"""Other projects' interfaces, each in a module of its own that needs that project: smolagents, llm-sandbox, Jupyter."""
