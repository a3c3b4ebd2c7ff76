"""The ground that every job stands on: ranks, devices, addresses, failure detection, files, errors."""
