"""Studies and measurements; nobody imports them. Each runs with ``python -m benchmarks.<name> [--quick] [--out FILE]``."""
