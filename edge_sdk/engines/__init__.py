"""Language models: what an engine is, its adapters, chat templates, sampling and constrained output."""
