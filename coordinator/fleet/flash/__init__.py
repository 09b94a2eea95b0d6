"""Cards that enrol by themselves: an image with the agent and a claim token on its boot partition."""
