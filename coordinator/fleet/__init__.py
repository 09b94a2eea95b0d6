"""The fleet: the certificate authority it trusts, how devices join it, what they run."""
