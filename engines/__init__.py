"""TensorRT: its libraries, and the engines that it builds of a bundle's graphs."""
