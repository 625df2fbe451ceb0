"""What a config costs in quality, time and bytes: held-out text, tasks, rivals, intervals, timing."""
