"""One file per experiment: file name = make target = run folder = report row."""
