"""`python -m perdure_cli run ...` is `perdure run ...`; runs in the supervisor's process."""

from perdure_cli.commands import main

if __name__ == "__main__":
    main()
