"""`python -m timm_robust` is the command line."""

from timm_robust.cli import main

if __name__ == "__main__":
    main()
