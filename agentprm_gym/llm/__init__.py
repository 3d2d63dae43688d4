"""Language models: loading, adapters, prompts, scoring."""
