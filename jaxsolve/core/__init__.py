"""What every method shares; imports no other folder of the package."""
