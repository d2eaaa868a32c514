"""`python -m comigs_edge` is the command `comigs-edge`; without the extra `device` it says what to install."""

import sys


def main() -> None:
    """The entry point."""
    try:
        from comigs_edge.cli import main as run
    except ModuleNotFoundError as error:
        if error.name in ("typer", "rich"):
            sys.exit(
                f"error: {error.name} is missing: this is the coordinator's installation; for a device run: "
                "pip install 'comigs-edge[device]'"
            )
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
