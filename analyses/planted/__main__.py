"""The command line of the study."""

from analyses.planted.study import main

if __name__ == "__main__":
    main()
