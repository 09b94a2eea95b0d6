"""Training steps on ARM: Debian below qemu-user, held to what this machine computes. `make test-arm` runs it."""
