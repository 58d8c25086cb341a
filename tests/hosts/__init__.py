"""Back ends and files for other simulators."""
