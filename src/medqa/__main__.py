"""Run the command line as `python -m medqa`."""

from medqa.cli.app import main

if __name__ == "__main__":
    main()
