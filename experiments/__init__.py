"""One file an experiment: file name = make target = run folder = report row."""
