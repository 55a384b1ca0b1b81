"""Work spread over ranks: the mesh, its exchanges, and what each axis does."""
