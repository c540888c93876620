"""How a run is carried out: its design, its jobs, the workers, the run directory and the gates."""
