"""Optional server: live sessions over a WebSocket, and a page that speaks to it ([serve] extra)."""
