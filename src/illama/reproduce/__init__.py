"""Studies of the paper by one command: declarative lists of recipe edits, a runner that resumes, and a report."""
