"""The command `pocketmoe`, also as `python -m pocketmoe`."""

import signal


def main() -> None:
    """Ctrl-C while the command is loaded ends it, without a traceback."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import main as command

    signal.signal(signal.SIGINT, before)
    command(prog_name="pocketmoe")


if __name__ == "__main__":
    main()
