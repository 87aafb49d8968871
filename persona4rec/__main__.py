"""`python -m persona4rec` is the `persona4rec` command."""

from persona4rec.cli import main

if __name__ == "__main__":  # the server's workers import this module anew
    main()
