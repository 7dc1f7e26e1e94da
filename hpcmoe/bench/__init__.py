"""What `bench` and `verify` measure, with peers beside us."""
