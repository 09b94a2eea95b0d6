"""Telling operators what wants them: rules, what becomes a message, what the clock alone brings about, and delivery."""
