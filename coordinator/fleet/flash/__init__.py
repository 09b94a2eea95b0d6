"""Cards that enrol by themselves: an operating system's image, with the agent and a claim token on its boot partition."""
