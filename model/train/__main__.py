"""The command `python -m pocketmoe.model.train`."""

from .training import main

main()
