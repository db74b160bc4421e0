"""The command line of the study."""

from analyses.good_vs_bad.study import main

if __name__ == "__main__":
    main()
