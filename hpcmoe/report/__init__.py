"""What a person reads: tables of jobs, files and results."""
