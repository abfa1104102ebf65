"""Optimizers: a core with techniques around it."""
