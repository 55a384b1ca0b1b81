"""Live sessions: what a serving stack embeds; threads, asyncio and snapshots."""
