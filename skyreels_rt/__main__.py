"""``python -m skyreels_rt`` is the command ``skyreels-rt``."""

from skyreels_rt.cli import main

if __name__ == "__main__":
    main()
