"""What papers claim, tried in the simulator: ``python -m benchmarks.reproductions.NAME [--full] [--seeds 10-12]``.

By default each is scaled to half an hour on two quiet cores; what that changes stands at the top of each module. Data:
SHOAL_DATA (default ../shared/data). Results go to --out, and the same command goes on where it was interrupted.
"""
