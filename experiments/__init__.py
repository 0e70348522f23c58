"""One file per experiment. The make target, run folder and report row have the file's name."""
