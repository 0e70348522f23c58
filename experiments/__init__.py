"""One file per experiment. Its make target, run folder and report row have the name of the file."""
