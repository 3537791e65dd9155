"""The engine process: scheduler and device, joined to the API process by messages."""
