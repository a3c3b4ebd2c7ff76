"""Foundation of every job: ranks, devices, addresses, failure detection, files, flags, errors."""
