"""`python -m pocketmoe` is the command `pocketmoe`."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="pocketmoe")
