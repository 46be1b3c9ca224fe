"""The experts' kernels in C++, and their library through ctypes."""
