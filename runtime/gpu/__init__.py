"""GPUs: their libraries, and what runs on them."""
