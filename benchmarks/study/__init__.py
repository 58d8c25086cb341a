"""What profiling many models times twice, and what it could leave out: `make study`."""
