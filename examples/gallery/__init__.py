"""Every optimizer of the library beside the others: on landscapes, and on three small tasks."""
