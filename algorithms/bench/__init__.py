"""The benchmark with models: rankers that need torch or a server, rankers by name, running them on a panel, and charts."""
