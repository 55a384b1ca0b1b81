"""Work spread over ranks: the mesh, what travels on each of its axes, and how much."""
