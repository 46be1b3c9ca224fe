"""GPUs: their libraries, devices and engines, pages in their memory, and the runner over them."""
