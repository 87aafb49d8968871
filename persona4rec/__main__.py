"""`python -m persona4rec` is the `persona4rec` command."""

from persona4rec.cli import main

main()
