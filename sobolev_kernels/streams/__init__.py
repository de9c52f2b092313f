"""What a student's forward does to its input, found by running it, unmodified, on something that stands for one."""
