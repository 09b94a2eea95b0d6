"""The coordinator: enrols devices, assigns subnetworks, merges updates and remembers everything."""

__version__ = "0.1.0"
