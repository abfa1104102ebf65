"""One technique a file, each a pure Optax gradient transformation."""
