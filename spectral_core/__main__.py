"""`python -m spectral_core` is the command `spectral-core`."""

from spectral_core.cli import main

if __name__ == "__main__":
    main()
