"""The GPU runtime: devices, engines, pages in GPU memory, and the runner over them."""
