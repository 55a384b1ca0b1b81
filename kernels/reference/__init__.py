"""Reference implementations: eager torch, the specification of every operator."""
