"""Measurements; benchmarks/README.md says what each of them tells, and what was found."""
