"""`python -m bnkit`, and `torchrun -m bnkit`."""

from bnkit.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
