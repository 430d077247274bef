"""What kernels ran, how long, and how near to what the device can do."""
