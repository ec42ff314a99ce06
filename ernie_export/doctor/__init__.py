"""What this machine can run, and what to install for the rest: `ernie-doctor`.

requirements   the packages that each extra needs, and the versions that are installed
machine        processor, memory and GPU
capabilities   what can be done here, each by the check that the code itself makes
cli            the command
"""
