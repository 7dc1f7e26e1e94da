"""What a job takes on hardware that is not there: the same schedule, under a simulated clock."""
