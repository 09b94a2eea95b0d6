"""The agent that runs on a device: it knows plans, not papers."""
