"""The agent that runs on a device: it knows plans, not papers."""

__version__ = "0.1.0"
