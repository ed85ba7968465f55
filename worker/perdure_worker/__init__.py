"""The worker: one process that owns a share of all objects and runs their turns."""
