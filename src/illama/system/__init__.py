"""What the operating system gives: files, locks, processes, signals, and what a number was made with."""
